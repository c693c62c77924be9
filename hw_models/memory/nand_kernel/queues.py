"""Chains of pieces: a first and a last one in neighbouring numbers, -1 where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import part
from opbyte.hw_models.memory.nand_kernel.layout import FREE, O_PIECES, P_NEXT, PIECE

if TYPE_CHECKING:
    from opbyte.hw_models.memory.nand_kernel.layout import Ints

__all__ = ["append", "new_piece", "pop", "release"]


@part
def append(m: Ints, queue: int, piece: int) -> None:
    """Add a piece at the end of the chain whose first piece `m[queue]` names."""
    m[m[O_PIECES] + piece * PIECE + P_NEXT] = -1
    if m[queue] < 0:
        m[queue] = piece
    else:
        m[m[O_PIECES] + m[queue + 1] * PIECE + P_NEXT] = piece
    m[queue + 1] = piece


@part
def pop(m: Ints, queue: int) -> int:
    """Take the first piece of a chain that has one."""
    piece = m[queue]
    m[queue] = m[m[O_PIECES] + piece * PIECE + P_NEXT]
    return int(piece)


@part
def new_piece(m: Ints) -> int:
    """Take a piece that is not in use."""
    piece = m[FREE]
    m[FREE] = m[m[O_PIECES] + piece * PIECE + P_NEXT]
    return int(piece)


@part
def release(m: Ints, piece: int) -> None:
    """Give a piece back."""
    m[m[O_PIECES] + piece * PIECE + P_NEXT] = m[FREE]
    m[FREE] = piece
