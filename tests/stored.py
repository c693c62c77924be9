"""Results that tests of the store write: numbers follow from the point, so that loss shows."""

import numpy as np

from opbyte.sweeps.rows import Rows, Words
from opbyte.sweeps.store import Store

META = {
    "name": "n", "key": "k", "code": "c", "version": "0", "description": "", "kind": "decode",
    "axes": ["workload.batch", "machine"], "derived": [], "metrics": ["seconds", "joules"],
    "points": 100, "dimensions": {"seconds": "seconds"}, "units": {"seconds": "s"},
    "study": {
        "axes": {"workload.batch": {"values": [1, 2]}},
        "objectives": {"seconds": "min", "joules": "min"},
    },
}  # fmt: skip
STATUSES = ("ok", "failed")
MACHINES = ("a", "b", "c")


def expected(points):
    """Return the columns of points."""
    points = np.array(points, dtype=np.int64)
    seconds = (points * 7919 % 1009) + 1.0
    return {
        "workload.batch": points * 2.0,
        "seconds": seconds,
        "joules": 1010.0 - seconds + points * 104729 % 97,
        "machine": np.array(MACHINES, dtype=object)[points % 3],
        "status": np.array(STATUSES, dtype=object)[(points % 10 == 9).astype(int)],
    }


def rows(points):
    """Return points as an evaluator does; each part has the texts in an order of its own."""
    columns = expected(points)
    points = np.array(points, dtype=np.int64)
    words = {}
    for name in ("machine", "status"):
        texts = tuple(dict.fromkeys(columns[name].tolist()))
        codes = np.array([texts.index(t) for t in columns[name]], dtype=np.int32)
        words[name] = Words(codes, texts)
    return Rows(points, {n: c for n, c in columns.items() if n not in words}, words)


def add_part(folder, points, meta=META):
    """Add one part, as a run of its own does."""
    store = Store(folder, meta)
    store.add(rows(points))
    store.flush()


def check_rows(frame, points):
    """Raise unless a frame holds these points, each once, with all that belongs to them."""
    points = sorted(set(points))
    assert frame["point"].tolist() == points
    for name, column in expected(points).items():
        assert frame[name].tolist() == column.tolist(), name
