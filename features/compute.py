"""Asking the engine for a number, and for lists in an order."""

import ibis
import ibis.expr.types as ir


def number(value: ir.Scalar) -> int:
    """Compute a whole number; the sum of nothing is 0."""
    return int(value.to_pyarrow().as_py() or 0)


def collected(values: ir.Column, *order: ir.Column) -> ir.ArrayColumn:
    """Gather the values of a group into one list, in the order of other columns; their nulls come last."""
    if values.get_backend().name == "duckdb":
        return values.collect(order_by=order)
    keys: dict[str, ir.Value] = {}
    for place, key in enumerate(order):  # Spark gathers in any order, and sorts structs by their fields
        keys |= {f"absent_{place}": key.isnull().cast("int8"), f"key_{place}": key}
    entries = ibis.struct({**keys, "value": values}).collect().sort()
    gathered: ir.ArrayColumn = entries.map(lambda entry: entry["value"])
    return gathered
