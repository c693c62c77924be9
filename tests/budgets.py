"""A small study with a budget: an H100, one that takes more power, and one that holds nothing."""

from opbyte.sweeps.study import load_study

ONE = "h100-sxm-80gb"
FULL = "full"


def variant(name, **parts):
    """Return an H100 with other parts."""
    return {"extends": ONE, "name": name, "parts": {"gpu": parts}}


def budgeted(folder, *, doubtful=False):
    """Run the study and return its results.

    Args:
        folder: Where.
        doubtful: With a machine that is fast as it stands, and slow in most draws.
    """
    machines = [
        ONE,
        variant("hungry", power="1750 W"),
        variant(FULL, memory={"hbm": {"capacity": "8 GiB"}}),
    ]
    if doubtful:
        rate = {"value": "3.8 TB/s", "source": "assumed: a test", "range": ["1 TB/s", "3.8 TB/s"]}
        machines.append(
            variant("doubtful", memory={"hbm": {"ports": {"phy": {"bandwidth": rate}}}})
        )
    return load_study(
        {
            "kind": "study", "name": "budgeted", "budget": {"machine": ONE, "count": 10},
            "base": {"workload": {"kind": "decode", "model": "llama-3.1-8b", "context": 1024}},
            "axes": {"machine": machines, "workload.batch": [8, 16]},
            "objectives": {"usd_per_mtoken": "min"},
        }
    ).run(folder, workers=1)  # fmt: skip
