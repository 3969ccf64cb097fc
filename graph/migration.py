"""Stores of older schemas, brought to this one in place.

The caller's transaction covers it all: a store is of the old schema or of the new one, never between.
"""

from __future__ import annotations

from sqlalchemy import Connection, inspect, update
from sqlalchemy.schema import CreateColumn

from graph import tables


def bring_up_to_date(connection: Connection) -> None:
    """Add the columns that version 3 brought; tables of later versions have been created by then.

    Every added column may be null or has a default, so what an older version wrote stays valid.
    """
    there = {column["name"] for column in inspect(connection).get_columns(tables.memories.name)}
    for column in tables.memories.columns:
        if column.name not in there:
            definition = CreateColumn(column).compile(dialect=connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {tables.memories.name} ADD COLUMN {definition}")
    connection.execute(update(tables.meta).values(schema_version=tables.SCHEMA_VERSION))
