"""Records beside the journal: kept over a restart, made for journals of before, and read with the journal in use."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from pathlib import Path

import pytest

from multus.database import Database
from multus.journal import _MIGRATIONS, SCHEMA_VERSION, Journal, JournalError, read_journal

pytestmark = pytest.mark.anyio


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(path) as made:
        yield made


async def test_one_value_by_kind_and_key(journal: Journal) -> None:
    records = journal.records
    assert await records.load("a", "vf") is None
    assert await records.all("vf") == []
    await records.save("b", "vf", b"\x00\xff")
    await records.save("a", "vf", b"")
    await records.save("a", "driver", b"other")
    await records.save("b", "vf", b"second")
    assert await records.load("b", "vf") == b"second"
    assert await records.load("a", "vf") == b""
    assert await records.all("vf") == [("a", b""), ("b", b"second")]
    await records.forget("a", "vf")
    await records.forget("a", "vf")
    assert await records.all("vf") == [("b", b"second")]
    assert await records.load("a", "driver") == b"other"


async def test_they_outlive_the_daemon(path: Path) -> None:
    async with Journal.open(path) as journal:
        await journal.records.save("a", "vf", b"1")
    async with Journal.open(path) as journal:
        assert await journal.records.all("vf") == [("a", b"1")]


async def test_a_journal_of_before_gets_their_table(path: Path) -> None:
    async with Database.open(path, _MIGRATIONS[:1]):
        pass
    assert read_journal(path) == []
    async with Journal.open(path) as journal:
        await journal.records.save("a", "vf", b"1")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (SCHEMA_VERSION,)


async def test_each_change_is_on_disk_when_it_returns(journal: Journal, path: Path) -> None:
    for change in (journal.records.save("a", "vf", b"1"), journal.records.forget("a", "vf")):
        await change
        assert await journal._database.read(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)


async def test_a_closed_journal_says_so(path: Path) -> None:
    async with Journal.open(path) as journal:
        records = journal.records
    with pytest.raises(JournalError, match="closed"):
        await records.load("a", "vf")
