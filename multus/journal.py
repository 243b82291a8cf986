"""What this node has promised: every sandbox and attachment, durable before the first delegate runs.

An SQLite database (`multus.database`), in write-ahead mode. Only the intent of an ADD waits for the disk (synchronous
FULL): it is what a power cut must not lose, because IPAM files outlive the kernel. Later writes only have to survive
this process, for which the page cache suffices: after a power cut the boot id differs and everything is undone anyway.
"""

import logging
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec

from multus.database import Database, JournalError, read_only
from multus.records import RECORDS, Records
from multus.sandbox import Attachment, Sandbox, State

logger = logging.getLogger(__name__)

__all__ = ["SCHEMA_VERSION", "Journal", "JournalError", "read_journal"]

# Each script makes the next schema of the one before; one that was released is never changed.
_MIGRATIONS = (
    """
CREATE TABLE sandbox (
    container_id TEXT NOT NULL, ifname TEXT NOT NULL, state TEXT NOT NULL, netns TEXT NOT NULL, netns_id TEXT NOT NULL,
    boot_id TEXT NOT NULL, pod_namespace TEXT NOT NULL, pod_name TEXT NOT NULL, pod_uid TEXT NOT NULL,
    nonce TEXT NOT NULL, created REAL NOT NULL, failures INTEGER NOT NULL DEFAULT 0, result BLOB, status TEXT,
    PRIMARY KEY (container_id, ifname)) WITHOUT ROWID;
CREATE TABLE attachment (
    container_id TEXT NOT NULL, sandbox_ifname TEXT NOT NULL, position INTEGER NOT NULL, network TEXT NOT NULL,
    ifname TEXT NOT NULL, device_id TEXT NOT NULL, body BLOB NOT NULL, result BLOB,
    PRIMARY KEY (container_id, sandbox_ifname, position),
    FOREIGN KEY (container_id, sandbox_ifname) REFERENCES sandbox (container_id, ifname) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE INDEX attachment_device ON attachment (device_id) WHERE device_id <> '';
""",
    RECORDS,
    "ALTER TABLE attachment ADD COLUMN partial BLOB;",
)
SCHEMA_VERSION = len(_MIGRATIONS)


class Journal:
    """Open with `async with Journal.open(path) as journal`.

    Every method raises JournalError when what it asks was not done. A caller that is cancelled takes his write back,
    unless it is under way: then it happens all the same.
    """

    def __init__(self, database: Database, known: Iterable[tuple[str, str]] = ()) -> None:
        self._database = database
        self._known = set(known)

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Journal"]:
        """Open or create the database; its directory must exist.

        :raises JournalError: when it cannot be opened, or is of a newer schema than this program knows.
        """
        async with Database.open(path, _MIGRATIONS) as database:
            yield cls(database, await database.read(_keys))

    @property
    def records(self) -> Records:
        """What is needed to put devices back as they were."""
        return Records(self._database)

    @property
    def commits(self) -> int:
        """Transactions so far: fewer than writes when writers share one."""
        return self._database.commits

    def __contains__(self, key: tuple[str, str]) -> bool:
        """Whether there may be a sandbox of that key, without a look at the disk."""
        return key in self._known

    async def begin(self, sandbox: Sandbox) -> None:
        """Store the intent of an ADD, on disk when this returns."""
        self._known.add(sandbox.key)
        row = (*sandbox.key, *_columns(sandbox))

        def run(connection: sqlite3.Connection) -> None:
            connection.execute(f"INSERT INTO sandbox VALUES ({_marks(len(row))})", row)  # noqa: S608
            _insert(connection, sandbox.key, sandbox.attachments)

        await self._database.write(run, durable=True)

    def attached(
        self, key: tuple[str, str], result: bytes, results: Sequence[tuple[int, bytes]], status: str | None
    ) -> Awaitable[None]:
        """The ADD is complete: the result to answer with, each attachment's own, and a network-status to write.

        This begins at once; what is returned is to be awaited.
        """

        def run(connection: sqlite3.Connection) -> None:
            connection.execute(
                "UPDATE sandbox SET state = ?, result = ?, status = ? WHERE container_id = ? AND ifname = ?",
                (State.ATTACHED, result, status, *key),
            )
            connection.executemany(
                "UPDATE attachment SET result = ? WHERE container_id = ? AND sandbox_ifname = ? AND position = ?",
                [(data, *key, position) for position, data in results],
            )

        return self._database.begin(run)

    async def plugged(self, key: tuple[str, str], attachment: Attachment) -> None:
        """One more attachment of a sandbox that is attached (hot plug), on disk when this returns."""
        await self._database.write(lambda connection: _insert(connection, key, [attachment]), durable=True)

    async def recorded(self, key: tuple[str, str], position: int, result: bytes) -> None:
        """The result of one attachment."""
        await self._execute(
            "UPDATE attachment SET result = ? WHERE container_id = ? AND sandbox_ifname = ? AND position = ?",
            (result, *key, position),
        )

    async def half_done(self, key: tuple[str, str], position: int, result: bytes) -> None:
        """What the plugins of one attachment have come to, before the next of them runs."""
        await self._execute(
            "UPDATE attachment SET partial = ? WHERE container_id = ? AND sandbox_ifname = ? AND position = ?",
            (result, *key, position),
        )

    async def unplugged(self, key: tuple[str, str], position: int) -> None:
        """One attachment is gone, the sandbox stays."""
        await self._execute(
            "DELETE FROM attachment WHERE container_id = ? AND sandbox_ifname = ? AND position = ?",
            (*key, position),
        )

    async def deleting(self, key: tuple[str, str]) -> None:
        """A DEL has begun: from here on the sandbox is only ever taken down."""
        await self._execute(
            "UPDATE sandbox SET state = ? WHERE container_id = ? AND ifname = ?", (State.DELETING, *key)
        )

    async def failed(self, key: tuple[str, str]) -> None:
        """A try to take the sandbox down did not succeed; it stays until one does."""
        await self._execute(
            "UPDATE sandbox SET state = ?, failures = failures + 1 WHERE container_id = ? AND ifname = ?",
            (State.DELETING, *key),
        )

    def status_written(self, key: tuple[str, str], status: str) -> None:
        """The pod carries this network-status: nothing to write any more (unless it changed meanwhile).

        Nobody waits for it: if it is lost, the status is written once more.
        """
        statement = "UPDATE sandbox SET status = NULL WHERE container_id = ? AND ifname = ? AND status = ?"
        self._database.post(lambda connection: connection.execute(statement, (*key, status)))

    async def status_pending(self, key: tuple[str, str], status: str) -> None:
        """The pod has yet to be told this network-status."""
        await self._execute("UPDATE sandbox SET status = ? WHERE container_id = ? AND ifname = ?", (status, *key))

    async def forget(self, key: tuple[str, str]) -> None:
        """Nothing of this sandbox is left on the node."""
        await self._execute("DELETE FROM sandbox WHERE container_id = ? AND ifname = ?", key)
        self._known.discard(key)

    async def get(self, key: tuple[str, str]) -> Sandbox | None:
        """One sandbox with its attachments, or None."""
        found = await self._read("WHERE container_id = ? AND ifname = ?", key)
        return found[0] if found else None

    async def taken(self, key: tuple[str, str]) -> Sandbox | None:
        """One sandbox, of which a DEL has begun: from here on it is only ever taken down; None when there is none."""

        def run(connection: sqlite3.Connection) -> list[Sandbox]:
            where = "WHERE container_id = ? AND ifname = ?"
            connection.execute(f"UPDATE sandbox SET state = ? {where}", (State.DELETING, *key))  # noqa: S608
            return _select(connection, where, key)

        found = await self._database.write(run) if key in self._known else []
        return found[0] if found else None

    async def container(self, container_id: str) -> list[Sandbox]:
        """Every sandbox of a container: one for each interface name a runtime attached by."""
        return await self._read("WHERE container_id = ?", (container_id,))

    async def all(self) -> list[Sandbox]:
        """Everything this node holds, oldest first."""
        return await self._read("", ())

    async def _read(self, where: str, values: tuple[str, ...]) -> list[Sandbox]:
        return await self._database.read(lambda connection: _select(connection, where, values))

    async def _execute(self, statement: str, values: tuple[Any, ...]) -> None:
        def run(connection: sqlite3.Connection) -> None:
            connection.execute(statement, values)

        await self._database.write(run)


def read_journal(path: Path) -> list[Sandbox]:
    """All sandboxes, read without a daemon and without changing anything: for tools.

    :raises JournalError: when there is no journal or it cannot be read.
    """
    return read_only(path, lambda connection: _select(connection, "", ()), schema=SCHEMA_VERSION)


def _keys(connection: sqlite3.Connection) -> list[tuple[str, str]]:
    return connection.execute("SELECT container_id, ifname FROM sandbox").fetchall()


_BODY = msgspec.json.Encoder()
_FROM_BODY = msgspec.json.Decoder(Attachment)


def _marks(count: int) -> str:
    return ", ".join("?" * count)


def _columns(sandbox: Sandbox) -> tuple[Any, ...]:
    return (
        sandbox.state,
        sandbox.netns,
        sandbox.netns_id,
        sandbox.boot_id,
        sandbox.pod_namespace,
        sandbox.pod_name,
        sandbox.pod_uid,
        sandbox.nonce,
        sandbox.created or time.time(),
        sandbox.failures,
        sandbox.result,
        sandbox.status,
    )


def _insert(connection: sqlite3.Connection, key: tuple[str, str], attachments: Sequence[Attachment]) -> None:
    connection.executemany(
        f"INSERT INTO attachment VALUES ({_marks(9)})",  # noqa: S608
        [
            (*key, each.position, each.network, each.ifname, each.device_id, _BODY.encode(each), each.result, None)
            for each in attachments
        ],
    )


def _select(connection: sqlite3.Connection, where: str, values: tuple[str, ...]) -> list[Sandbox]:
    names = ", ".join(name for name in Sandbox.__struct_fields__ if name != "attachments")
    rows = connection.execute(f"SELECT {names} FROM sandbox {where} ORDER BY created", values)  # noqa: S608
    return [_sandbox(connection, row) for row in rows.fetchall()]


def _sandbox(connection: sqlite3.Connection, row: tuple[Any, ...]) -> Sandbox:
    fields = dict(zip(Sandbox.__struct_fields__, row, strict=False))
    rows = connection.execute(
        "SELECT position, network, ifname, device_id, body, result, partial FROM attachment "
        "WHERE container_id = ? AND sandbox_ifname = ? ORDER BY position",
        row[:2],
    )
    attachments = tuple(_attachment(row[0], *each) for each in rows.fetchall())
    try:
        state = State(fields["state"])
    except ValueError:  # nothing is done to it before the runtime says what
        logger.error("the journal's record of container %s is damaged: state %r", row[0], fields["state"])
        state = State.ATTACHED
    return Sandbox(**(fields | {"state": state, "attachments": attachments}))


def _attachment(
    container_id: str,
    position: int,
    network: str,
    ifname: str,
    device_id: str,
    body: bytes,
    result: bytes | None,
    partial: bytes | None,
) -> Attachment:
    """One that cannot be understood has no conf: its device stays taken, and its DEL fails and says so."""
    try:
        item = _FROM_BODY.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.error("the journal's record of %s of container %s is damaged: %s", network, container_id, error)
        item = Attachment(position=position, network=network, ifname=ifname, device_id=device_id, conf=b"")
    return msgspec.structs.replace(item, result=result, partial=partial)
