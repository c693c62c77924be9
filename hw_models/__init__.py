"""The hardware: prices placed operators on given parts; no clock runs here."""

if not __name__.startswith("opbyte."):
    raise ImportError(
        f"this folder is the package opbyte.hw_models, but it was imported as {__name__!r}. "
        "Install opbyte and write `import opbyte.hw_models`."
    )
