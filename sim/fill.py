"""The largest batch that fits, what `batch: max` stands for, and batches that take turns."""

from __future__ import annotations

import math
from collections.abc import Mapping as MappingType
from dataclasses import replace
from typing import Any

import numpy as np

from opbyte.core.errors import WorkloadError
from opbyte.core.mapping import Mapping
from opbyte.core.ops import Array
from opbyte.sim.place import Placer
from opbyte.workloads.works import Work

#: Tensor classes whose size does not depend on the batch; all others grow in proportion to it.
_FIXED = ("weight", "expert")


def largest_batch(placer: Placer, held: MappingType[str, Any], batch: Any) -> Array:
    """Return the most sequences that fit in every memory at once, (points,).

    A multiple of what replicas and microbatches share equally, and at least that.

    Args:
        held: Tensor class -> bytes that one device holds with `batch` sequences.
    """
    share = placer.mapping.degrees.dp * placer.mapping.degrees.microbatches
    fixed = placer.occupancy({tensor: held.get(tensor, 0.0) for tensor in _FIXED})
    fits: Any = np.inf
    for tier, used in placer.occupancy(held).items():
        alone = fixed.get(tier, 0.0)
        each = (used - alone) / batch
        room = placer.capacity(tier) - alone
        fits = np.minimum(fits, np.where(each > 0, room / np.where(each > 0, each, 1.0), np.inf))
    # Division may fall short of a whole number by a rounding.
    whole: Array = np.atleast_1d(np.floor(fits * (1.0 + 1e-12) / share) * share)
    return np.maximum(whole, float(share))


def fills(work: Work) -> bool:
    """Return whether a work asks for the largest batch."""
    return any(_asked(work, name) for name in work.fills)


def filled(placer: Placer, work: Work, held: MappingType[str, Any]) -> Work:
    """Return a work with as many sequences as fit instead of `max`.

    Args:
        held: What one device holds with the batch of `smallest`.
    """
    names = [name for name in work.fills if _asked(work, name)]
    found = largest_batch(placer, held, _least(placer))
    value: Any = float(found[0]) if found.size == 1 else found
    return replace(work, **dict.fromkeys(names, value))


def smallest(placer: Placer, work: Work) -> Work:
    """Return a work with one sequence for each replica and microbatch instead of `max`."""
    asked = [name for name in work.fills if _asked(work, name)]
    least: Any = _least(placer)
    return replace(work, **dict.fromkeys(asked, least))


def with_turns(mapping: Mapping, work: Work) -> Mapping:
    """Return a mapping whose continuous pipeline holds no more batches than there are sequences.

    One sequence alone follows itself: then there is no pipeline to keep full.
    """
    pipeline, batch = mapping.pipeline, np.atleast_1d(getattr(work, "batch", 1.0))
    if pipeline is None or pipeline.kind != "continuous" or batch.size > 1:
        return mapping
    fewer = min(float(mapping.batches), float(batch[0]))
    if fewer == mapping.batches:
        return mapping
    left = pipeline.model_copy(update={"batches": int(fewer)}) if fewer > 1 else None
    return mapping.model_copy(update={"pipeline": left})


def check_turns(placer: Placer, work: Work) -> None:
    """Refuse a batch that batches which take turns can not share equally.

    Raises:
        WorkloadError: If it is no multiple of them.
    """
    pipeline = placer.mapping.pipeline
    if pipeline is None:
        return
    batch = np.atleast_1d(getattr(work, "batch", 0.0))
    batches = placer.mapping.batches
    rest = batch % batches
    if rest.any():
        raise WorkloadError(
            f"{work.kind}: batch must be a multiple of the {batches} batches that take "
            f"turns under the mapping '{placer.mapping.name}', got {batch[rest > 0][0]:g}. use "
            "one, or a mapping without a pipeline"
        )


def _least(placer: Placer) -> float:
    return float(placer.mapping.degrees.dp * placer.mapping.degrees.microbatches)


def _asked(work: Work, name: str) -> bool:
    value = getattr(work, name)
    return isinstance(value, float) and math.isinf(value)
