"""Chains of pieces: a first and a last one in neighbouring numbers, -1 where there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING

from opbyte.core.loops import part
from opbyte.hw_models.memory.nand_kernel.layout import (
    FREE,
    G_PLANE,
    G_TARGET,
    O_PIECES,
    O_PLANES,
    P_NEXT,
    P_PLANE,
    P_TARGET,
    PIECE,
    PLANE,
)

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
def new_piece(m: Ints, plane: int) -> int:
    """Take a piece that is not in use, for a plane."""
    piece, place = m[FREE], m[O_PLANES] + plane * PLANE
    at = m[O_PIECES] + piece * PIECE
    m[FREE] = m[at + P_NEXT]
    m[at + P_TARGET], m[at + P_PLANE], m[at + P_NEXT] = m[place + G_TARGET], m[place + G_PLANE], -1
    return int(piece)


@part
def release(m: Ints, piece: int) -> None:
    """Give a piece back."""
    m[m[O_PIECES] + piece * PIECE + P_NEXT] = m[FREE]
    m[FREE] = piece
