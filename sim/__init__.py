"""Time: joins work and hardware, and lets the operators of a step wait for each other."""

if not __name__.startswith("opbyte."):
    raise ImportError(
        f"this folder is the package opbyte.sim, but it was imported as {__name__!r}. "
        "Install opbyte and write `import opbyte.sim`."
    )
