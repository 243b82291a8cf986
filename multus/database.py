"""An SQLite database with one writer: whatever has queued up is committed as one transaction and shares one fsync.

All statements run in one worker thread at a time. A statement that fails is undone alone; its neighbours in the
transaction are not touched. A disk that is full or gone fails the writers of the moment, not the database: the next
ones try anew, and reading goes on meanwhile.
"""

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Coroutine, Generator, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, TypeVar

import anyio
import anyio.to_thread
import msgspec

from multus.errors import Fault, MultusError

logger = logging.getLogger(__name__)

T = TypeVar("T")

Run = Callable[[sqlite3.Connection], T]

_BUSY: Final = 5.0  # seconds to wait for another process's lock, such as a person's sqlite3


class JournalError(MultusError):
    """The journal cannot be read or written: nothing may be attached until it can."""

    fault: ClassVar[Fault] = Fault.KERNEL
    retry: ClassVar[bool] = True


class _Operation(msgspec.Struct, kw_only=True, eq=False):
    run: Run[Any]
    done: anyio.Event
    durable: bool = False
    reads: bool = False
    posted: bool = False
    answer: Any = None
    error: Exception | None = None


class Answer(Generic[T]):
    """What an operation that has begun comes to; unlike a coroutine, it need not be awaited."""

    def __init__(self, wait: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._wait = wait

    def __await__(self) -> Generator[Any, None, T]:
        return self._wait().__await__()


class Database:
    """Open with `async with Database.open(path, migrations) as database`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._queue: list[_Operation] = []
        self._wake = anyio.Event()
        self._thread = anyio.CapacityLimiter(1)
        # Ended by `open` alone: when everything is cancelled, there is cleanup that still has to write.
        self._serving = anyio.CancelScope(shield=True)
        self._closed = False
        self.commits = 0

    @classmethod
    @asynccontextmanager
    async def open(cls, path: Path, migrations: Sequence[str]) -> AsyncIterator["Database"]:
        """Open or create the database; its directory must exist. Script N of `migrations` makes schema N+1 of N.

        :raises JournalError: when it cannot be opened, or is of a newer schema than there are scripts.
        """
        connection = await anyio.to_thread.run_sync(_connect, path, migrations)
        database = cls(connection)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(database._serve)
                try:
                    yield database
                finally:
                    database._close()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.to_thread.run_sync(connection.close)

    async def write(self, run: Run[T], *, durable: bool = False) -> T:
        """The answer of `run`, once it is committed; `durable`: once it is on disk.

        A caller that is cancelled takes his write back, unless it is under way: then it happens all the same.

        :raises JournalError: it was not committed.
        """
        return await self.begin(run, durable=durable)

    def begin(self, run: Run[T], *, durable: bool = False) -> "Answer[T]":
        """As `write`, begun at once: what is returned may be awaited for the answer."""
        return Answer(partial(self._answer, self._queued(_Operation(run=run, durable=durable, done=anyio.Event()))))

    def post(self, run: Run[object]) -> None:
        """Have it written soon, unless the database closes before. A failure is told in the log only."""
        if not self._closed:
            self._queued(_Operation(run=run, posted=True, done=anyio.Event()))

    async def read(self, run: Run[T]) -> T:
        """The answer of `run`, which changes nothing; works with a full disk, too.

        :raises JournalError: it could not be read.
        """
        answer: T = await self._answer(self._queued(_Operation(run=run, reads=True, done=anyio.Event())))
        return answer

    def _queued(self, operation: _Operation) -> _Operation:
        if self._closed:
            operation.error = JournalError("the journal is closed")
            operation.done.set()
        else:
            self._queue.append(operation)
            self._wake.set()
        return operation

    async def _answer(self, operation: _Operation) -> Any:
        try:
            await operation.done.wait()
        except anyio.get_cancelled_exc_class():
            if operation in self._queue:
                self._queue.remove(operation)
            raise
        if operation.error is not None:
            raise _wrap(operation.error) from operation.error
        return operation.answer

    async def _serve(self) -> None:
        with self._serving:
            while True:
                await self._wake.wait()
                self._wake = anyio.Event()
                batch, self._queue = self._queue, []
                # Shielded: once in the thread, the batch happens, and those who wait for it must hear so.
                with anyio.CancelScope(shield=True):
                    self.commits += await anyio.to_thread.run_sync(
                        _perform, self._connection, batch, limiter=self._thread
                    )
                for operation in batch:
                    operation.done.set()
                    if operation.posted and operation.error is not None:
                        logger.warning("%s", _wrap(operation.error))

    def _close(self) -> None:
        self._closed = True
        self._serving.cancel()
        for operation in self._queue:
            operation.error = JournalError("the journal was closed before this was written")
            operation.done.set()
        self._queue = []


def _perform(connection: sqlite3.Connection, batch: Sequence[_Operation]) -> int:
    """Carry out a batch, errors noted in each operation; how many transactions were committed, 0 or 1."""
    writes = [operation for operation in batch if not operation.reads]
    commits = 0
    try:
        if writes:
            _commit(connection, writes)
            commits = 1
    except Exception as error:
        for operation in writes:
            operation.error = operation.error or error
    for operation in batch:
        if operation.reads:
            try:
                operation.answer = operation.run(connection)
            except Exception as error:
                operation.error = error
    return commits


def _commit(connection: sqlite3.Connection, batch: Sequence[_Operation]) -> None:
    durable = any(operation.durable for operation in batch)
    connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        for operation in batch:
            connection.execute("SAVEPOINT one")
            try:
                operation.answer = operation.run(connection)
            except Exception as error:
                operation.error = error
                if not connection.in_transaction:
                    raise  # the disk is full or failed: SQLite has rolled back everything
                connection.execute("ROLLBACK TO one")
            connection.execute("RELEASE one")
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _wrap(error: Exception) -> JournalError:
    if isinstance(error, JournalError):
        return JournalError(error.message, hint=error.hint)
    if isinstance(error, sqlite3.OperationalError):
        hint = "check that the state directory is writable and its disk not full"
    else:
        hint = "the record is not one that can be kept: a defect of multusd"
    return JournalError(f"the journal refused: {error}", hint=hint)


def _connect(path: Path, migrations: Sequence[str]) -> sqlite3.Connection:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.fchmod(descriptor, 0o600)  # SQLite gives its other files the same mode
        finally:
            os.close(descriptor)
        connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=_BUSY)
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA foreign_keys = ON")
            _migrate(connection, path, migrations)
        except BaseException:
            connection.close()
            raise
    except (sqlite3.Error, OSError) as error:
        raise JournalError(
            f"cannot open the journal {path}: {error}",
            hint="check the directory, its disk and its permissions",
        ) from error
    return connection


def _migrate(connection: sqlite3.Connection, path: Path, migrations: Sequence[str]) -> None:
    version = _version(connection, path, len(migrations))
    for number, script in enumerate(migrations[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script} PRAGMA user_version = {number}; COMMIT;")


def _version(connection: sqlite3.Connection, path: Path, known: int) -> int:
    version = int(connection.execute("PRAGMA user_version").fetchone()[0])
    if not 0 <= version <= known:
        raise JournalError(
            f"journal {path} has schema {version}, this program knows {known}",
            hint="run the version that wrote it, or a newer one",
        )
    return version


def read_only(path: Path, run: Run[T], *, schema: int) -> T:
    """The answer of `run` on a database that another process may be writing, as of one moment.

    :raises JournalError: there is none, it cannot be read, or it is of a newer schema than `schema`.
    """
    try:
        uri = f"{path.absolute().as_uri()}?mode=ro"
        with closing(sqlite3.connect(uri, uri=True, isolation_level=None, timeout=_BUSY)) as connection:
            connection.execute("BEGIN")
            _version(connection, path, schema)
            return run(connection)
    except (sqlite3.Error, ValueError) as error:
        raise JournalError(f"cannot read the journal {path}: {error}", hint="has multusd run on this node?") from error
