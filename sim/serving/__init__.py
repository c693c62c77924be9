"""Serving: requests arrive, a scheduler forms batches, memory holds their caches, time passes."""
