"""The decision: many simulations, stored, searched and drawn; the command line."""

if not __name__.startswith("opbyte."):
    raise ImportError(
        f"this folder is the package opbyte.sweeps, but it was imported as {__name__!r}. "
        "Install opbyte and write `import opbyte.sweeps`."
    )
