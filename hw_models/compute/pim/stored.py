"""What banks must hold for units that multiply it there: elements of the width that they take.

Units inside a memory read whole columns of elements. Nothing unpacks what is stored narrower, or
wider, than they multiply, so that such a matrix or cache can not be priced as if it were.
"""

from __future__ import annotations

from opbyte.core.dtypes import lookup
from opbyte.core.errors import UncoveredError
from opbyte.core.ops import OpTable

#: By which stored bytes may differ from those of the elements: biases are stored beside a matrix.
_MOST = 0.2


def check_stored(table: OpTable, row: int, who: str) -> None:
    """Refuse a product with what banks do not hold as the unit multiplies it.

    Args:
        row: A product with a weight matrix, a score or a context.
        who: Machine and unit, for the error.

    Raises:
        UncoveredError: If the matrix, keys or values are not in memory, or their elements have
            another width than those of the product.
    """
    attends = table.kinds[row] in ("score", "context")
    held = table["kv_read"][row] if attends else table["weight"][row] + table["expert"][row]
    elements = table["n"][row] * table["k"][row] * table["groups"][row]
    if not (held > 0).all():
        what = "keys and values of their own" if attends else "matrix that banks hold"
        raise UncoveredError(
            f"{who} can not run '{table.names[row]}': it reads no {what}. map it to another unit"
        )
    size = lookup(table.dtypes[row]).bytes_per_element
    found = float((held / elements).max())
    if abs(found - size) > _MOST * size:
        tensor = "kv" if attends else "weight"
        raise UncoveredError(
            f"{who} multiplies {table.dtypes[row]} as banks hold it, {size:g} bytes an element, "
            f"and '{table.names[row]}' is stored in {found:.3g}. choose another `precision` of "
            f"{tensor}, or map it to another unit"
        )
