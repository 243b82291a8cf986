"""Records by kind and key beside the journal's sandboxes: how a device was before it was changed for a pod."""

import sqlite3
from typing import Any, Final

from multus.database import Database

RECORDS: Final = """
CREATE TABLE record (
    kind TEXT NOT NULL, key TEXT NOT NULL, data BLOB NOT NULL, PRIMARY KEY (kind, key)) WITHOUT ROWID;
"""
"""The migration that makes their table."""


class Records:
    """Each is one value by (kind, key). Every method raises JournalError when what it asks was not done."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def save(self, key: str, kind: str, data: bytes) -> None:
        """Keep `data` in place of what was kept there before, on disk when this returns."""
        await self._change("INSERT OR REPLACE INTO record (kind, key, data) VALUES (?, ?, ?)", (kind, key, data))

    async def load(self, key: str, kind: str) -> bytes | None:
        """What was kept there last, or None."""

        def run(connection: sqlite3.Connection) -> bytes | None:
            row = connection.execute("SELECT data FROM record WHERE kind = ? AND key = ?", (kind, key)).fetchone()
            return bytes(row[0]) if row else None

        return await self._database.read(run)

    async def forget(self, key: str, kind: str) -> None:
        """Nothing is to be put back any more; on disk when this returns, or the next boot would put it back again."""
        await self._change("DELETE FROM record WHERE kind = ? AND key = ?", (kind, key))

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        """Everything of a kind, as (key, data), by key."""

        def run(connection: sqlite3.Connection) -> list[tuple[str, bytes]]:
            rows = connection.execute("SELECT key, data FROM record WHERE kind = ? ORDER BY key", (kind,))
            return [(key, bytes(data)) for key, data in rows.fetchall()]

        return await self._database.read(run)

    async def _change(self, statement: str, values: tuple[Any, ...]) -> None:
        def run(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._database.write(run, durable=True)
