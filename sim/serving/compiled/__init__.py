"""The serving loop over arrays: the compiled twin of engine and schedulers."""
