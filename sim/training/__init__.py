"""Training steps in time: streams of a device, pipelines of stages, replicas, the optimizer."""
