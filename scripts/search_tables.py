"""Play every point of the shipped search spaces and keep what tests compare searches with.

    python scripts/search_tables.py [--workers N] [--work DIR] [NAME ...]

writes tests/data/search/NAME.parquet: status, violation and objectives of every point, by id. About
five minutes a space on one core. Needed again when the simulator's answers move: the test
`tests/unit/test_search_tables.py` plays a few points of each table and says so.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from opbyte.sweeps.runner import Options, run_plan
from opbyte.sweeps.study import load_study

NAMES = ("search_duplex", "search_lamina", "search_pipeline")
FOLDER = Path(__file__).resolve().parents[1] / "tests" / "data" / "search"


def write(name: str, work: Path, workers: int) -> None:
    """Play the grid of a study and write its table."""
    plan = load_study(name, {"strategy": {"kind": "grid"}}).plan
    began = time.perf_counter()
    results = run_plan(plan, Options(out=work / name, workers=workers))
    seconds = time.perf_counter() - began
    columns = results.columns()
    status = columns["status"].astype(str)
    codes = np.searchsorted(["failed", "infeasible", "ok"], status).astype(np.int8)
    names = [n for n in ("violation", *results.objectives) if n in columns]
    data = {"point": columns["point"], "status": codes, **{n: columns[n] for n in names}}
    meta = {"seconds": f"{seconds:.0f}", "code": str(results.meta["code"])}
    table = pa.table(data).replace_schema_metadata(meta)
    FOLDER.mkdir(parents=True, exist_ok=True)
    target = FOLDER / f"{name}.parquet"
    pq.write_table(table, target, compression="zstd", use_dictionary=True)
    print(f"{name}: {len(codes):,} points, {seconds:.0f} s, {target.stat().st_size / 1e3:.0f} kB")


def main() -> int:
    """Write the tables that were asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("names", nargs="*", default=NAMES, help=f"of {', '.join(NAMES)}")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--work", type=Path, default=None, help="folder of results, kept")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name in given.names:
            write(name, given.work or Path(folder), given.workers)
    return 0


if __name__ == "__main__":
    sys.exit(main())
