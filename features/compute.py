"""Asking the engine for a result: a table that others are selected from, or one number."""

import ibis.expr.types as ir
from ibis.backends import BaseBackend


def materialise(connection: BaseBackend, name: str, table: ir.Table) -> ir.Table:
    """Compute a table once, for all the tables that are selected from it, until the connection closes."""
    return connection.create_table(name, table, temp=True)


def number(value: ir.Scalar) -> int:
    """Compute a whole number; the sum of nothing is 0."""
    return int(value.to_pyarrow().as_py() or 0)
