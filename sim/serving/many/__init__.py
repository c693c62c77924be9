"""Many adapters, or many models, on one engine."""
