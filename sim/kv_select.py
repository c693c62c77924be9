"""Decode attention that is exact on some of the cached tokens only (`kv_select`).

A first look at every key says which keep * M of the M tokens get an exact product, a softmax and a
value. It reads a share `look` of a key and costs `work` of an exact product:

    keys read    (keep + look) * M        values read          keep * M
    score        (keep + work) * M        softmax, context     keep * M

- `lop` (VitaLLM, arXiv 2604.27396 and 2605.00320) meets the leading ones of every element: a sign
  and a position. A product with them is one shifted addition: look = bits / bits of an element.
- `sparf` (InstInfer, arXiv 2409.04992; SparQ, arXiv 2312.04985) meets r of a key's d channels,
  those in which the query is largest: look = work = r / d. What whole pages add is the engine's.

Query heads that share keys share the choice. `lop` compares nothing (a histogram's K largest) and
hides behind the scores.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.kv_select import KvSelect
from opbyte.core.ops import OpTable

_EXACT = ("softmax", "context")


def selected(table: OpTable, select: KvSelect) -> OpTable:
    """Return the table with decode attention on the kept tokens.

    Raises:
        UncoveredError: If decode attention already chooses tokens itself.
    """
    columns = {name: np.array(table[name]) for name in ("flops", "kv_read", "out_bytes", "n", "k")}
    for row, kind in enumerate(table.kinds):
        if "attention_decode" not in table.labels[row] or kind == "kv_append":
            continue
        keep = select.keep.value
        if kind == "score":
            columns["flops"][row] *= keep + select.look_work
            columns["kv_read"][row] *= keep + select.looked(_bits(table, row))
            columns["n"][row] *= keep + select.look_work
            columns["out_bytes"][row] *= keep
        elif kind in _EXACT:
            for name in ("flops", "kv_read", *(("k",) if kind == "context" else ("out_bytes",))):
                columns[name][row] *= keep
        else:
            raise UncoveredError(
                f"kv_select keeps some of the cached tokens, and this model's attention chooses "
                f"tokens itself ('{table.names[row]}', {kind}). leave kv_select out"
            )
    return replace(table, columns={**table.columns, **columns})


def _bits(table: OpTable, row: int) -> float:
    """Return the bits of an element of a row's keys."""
    names = [x.removeprefix("kv-") for x in table.labels[row] if x.startswith("kv-")]
    return lookup(names[0] if names else table.dtypes[row]).bits_per_element
