"""The work: models, phases and request traces, lowered to operator tables; knows no hardware."""

if not __name__.startswith("opbyte."):
    raise ImportError(
        f"this folder is the package opbyte.workloads, but it was imported as {__name__!r}. "
        "Install opbyte and write `import opbyte.workloads`."
    )
