"""What the journal promises: nothing that `begin` returned for is lost, and one writer's trouble is not another's."""

import gc
import os
import resource
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from multus.database import Database
from multus.journal import SCHEMA_VERSION, Journal, JournalError, read_journal
from multus.sandbox import Attachment, Sandbox, State

pytestmark = pytest.mark.anyio


def attachment(position: int = 0, **more: Any) -> Attachment:
    more.setdefault("conf", b'{"cniVersion":"1.0.0","name":"n","type":"bridge","\xc3\xa9":1e400}')
    return Attachment(position=position, network=f"default/n{position}", ifname=f"net{position}", **more)


def sandbox(container: str = "c1", *, ifname: str = "eth0", created: float = 0.0, **more: Any) -> Sandbox:
    more.setdefault("attachments", (attachment(0), attachment(1)))
    return Sandbox(
        container_id=container,
        ifname=ifname,
        state=State.ADDING,
        netns="/run/netns/x",
        netns_id="4:4026532000",
        boot_id="boot",
        pod_namespace="default",
        pod_name="web",
        pod_uid="u1",
        nonce="nonce",
        created=created,
        **more,
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal.db"


@pytest.fixture
async def journal(path: Path) -> AsyncIterator[Journal]:
    async with Journal.open(path) as opened:
        yield opened


# ---------------------------------------------------------------- records


async def test_a_sandbox_comes_back_as_it_was(journal: Journal) -> None:
    rich = sandbox(
        created=1234.5,
        attachments=(
            attachment(0, default=True, result=b'{"cniVersion":"1.1.0"}'),
            attachment(
                1,
                args=(("IgnoreUnknown", "true"), ("A", "\N{SNOWMAN}=;")),
                runtime={"mac": "02:00:00:00:00:01", "portMappings": [{"hostPort": 80}], "deep": {"a": [None, 1.5]}},
                device_id="0000:03:00.1",
                resource="intel.com/vf",
                hotplug=True,
                after=(0,),
                device_info="n-c1-net1-device.json",
            ),
        ),
    )
    await journal.begin(rich)
    assert await journal.get(rich.key) == rich
    assert await journal.get(("c1", "eth1")) is None


async def test_the_life_of_a_sandbox(journal: Journal) -> None:
    key = sandbox().key
    await journal.begin(sandbox())
    found = await journal.get(key)
    assert found is not None
    assert (found.state, found.failures, found.result, found.status) == (State.ADDING, 0, None, None)
    assert found.created > 0

    await journal.attached(key, b"result", [(0, b"r0"), (1, b"r1")], "status")
    found = await journal.get(key)
    assert found is not None
    assert (found.state, found.result, found.status) == (State.ATTACHED, b"result", "status")
    assert [item.result for item in found.attachments] == [b"r0", b"r1"]

    journal.status_written(key, "an older one")
    assert (await journal.all())[0].status == "status", "it changed meanwhile: there is still something to write"
    journal.status_written(key, "status")
    assert (await journal.all())[0].status is None
    await journal.status_pending(key, "newer")
    assert (await journal.all())[0].status == "newer"

    await journal.plugged(key, attachment(2, hotplug=True))
    await journal.recorded(key, 2, b"r2")
    assert [item.result for item in (await journal.all())[0].attachments] == [b"r0", b"r1", b"r2"]
    await journal.unplugged(key, 0)
    assert [item.position for item in (await journal.all())[0].attachments] == [1, 2]

    await journal.deleting(key)
    await journal.failed(key)
    await journal.failed(key)
    found = await journal.get(key)
    assert found is not None
    assert (found.state, found.failures) == (State.DELETING, 2)
    await journal.forget(key)
    assert await journal.all() == []
    await journal.forget(key)


async def test_forgetting_leaves_no_attachment_behind(journal: Journal, path: Path) -> None:
    await journal.begin(sandbox("c1"))
    await journal.begin(sandbox("c2"))
    await journal.forget(("c1", "eth0"))
    assert [each.container_id for each in await journal.all()] == ["c2"]
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT DISTINCT container_id FROM attachment").fetchall() == [("c2",)]


async def test_sandboxes_of_a_container_and_the_order_of_all(journal: Journal) -> None:
    for container, ifname, created in (("b", "eth0", 3.0), ("a", "eth1", 2.0), ("a", "eth0", 4.0)):
        await journal.begin(sandbox(container, ifname=ifname, created=created))
    assert [each.ifname for each in await journal.container("a")] == ["eth1", "eth0"]
    assert [each.created for each in await journal.all()] == [2.0, 3.0, 4.0]
    assert await journal.container("x") == []


async def test_a_second_begin_changes_nothing(journal: Journal) -> None:
    await journal.begin(sandbox(attachments=(attachment(0),)))
    with pytest.raises(JournalError, match="UNIQUE"):
        await journal.begin(sandbox(attachments=(attachment(5),)))
    assert [item.position for item in (await journal.all())[0].attachments] == [0]


async def test_an_attachment_without_its_sandbox_is_refused(journal: Journal) -> None:
    with pytest.raises(JournalError, match="FOREIGN KEY"):
        await journal.plugged(("nobody", "eth0"), attachment())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=20),
    data=st.binary(max_size=20),
    runtime=st.dictionaries(
        st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(), st.lists), max_size=3
    ),
)
async def test_whatever_a_record_holds_it_is_kept_or_refused(
    journal: Journal, text: str, data: bytes, runtime: dict[str, Any]
) -> None:
    asked = sandbox(text, created=1.0, attachments=(attachment(conf=data, args=((text, text),), runtime=runtime),))
    await journal.forget(asked.key)
    try:
        await journal.begin(asked)
    except JournalError:
        assert await journal.get(asked.key) is None
    else:
        assert await journal.container(text) == [asked]


# ---------------------------------------------------------------- writers beside each other


async def test_a_burst_shares_transactions(journal: Journal) -> None:
    async with anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(journal.begin, sandbox(f"c{number}"))
    assert len(await journal.all()) == 50
    assert journal.commits <= 3


async def test_reading_commits_nothing(journal: Journal) -> None:
    before = journal.commits
    assert await journal.all() == []
    assert journal.commits == before


async def test_a_failing_statement_does_not_spoil_its_neighbours(journal: Journal) -> None:
    await journal.begin(sandbox("taken"))
    unstorable = {"a surrogate": sandbox("\udc80"), "too large": sandbox("big", attachments=(attachment(1 << 70),))}
    unstorable["no JSON"] = sandbox("odd", attachments=(attachment(runtime={"x": object()}),))
    errors: list[str] = []

    async def fails(asked: Sandbox) -> None:
        with pytest.raises(JournalError) as caught:
            await journal.begin(asked)
        errors.append(caught.value.message)

    before = journal.commits
    async with anyio.create_task_group() as group:
        group.start_soon(journal.begin, sandbox("first"))
        for asked in (sandbox("taken"), *unstorable.values()):
            group.start_soon(fails, asked)
        group.start_soon(journal.begin, sandbox("last"))
    assert journal.commits == before + 1, "one transaction, so they were neighbours"
    assert len(errors) == 4
    assert sorted(each.container_id for each in await journal.all()) == ["first", "last", "taken"]


async def test_a_half_done_operation_is_undone_whole(journal: Journal) -> None:
    twice = sandbox("c1", attachments=(attachment(0), attachment(0)))
    with pytest.raises(JournalError, match="UNIQUE"):
        await journal.begin(twice)
    assert await journal.all() == []


class Held:
    """A database whose worker thread is busy until it is let go."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.began = threading.Event()
        self.go = threading.Event()

    async def hold(self) -> None:
        def run(_: sqlite3.Connection) -> None:
            self.began.set()
            self.go.wait(10)

        await self.database.write(run)

    async def until_it_holds(self) -> None:
        while not self.began.is_set():
            await anyio.sleep(0.001)


_TABLE = ("CREATE TABLE t (x);",)


def insert(value: str) -> Callable[[sqlite3.Connection], object]:
    return lambda connection: connection.execute("INSERT INTO t VALUES (?)", (value,)).rowcount


def values(connection: sqlite3.Connection) -> list[str]:
    return [row[0] for row in connection.execute("SELECT x FROM t")]


async def test_a_cancelled_writer_takes_back_what_was_not_begun(path: Path) -> None:
    async with Database.open(path, _TABLE) as database, anyio.create_task_group() as group:
        busy = Held(database)
        group.start_soon(busy.hold)
        await busy.until_it_holds()
        cancelled = anyio.CancelScope()

        async def write() -> None:
            with cancelled:
                await database.write(insert("taken back"))
            assert cancelled.cancelled_caught

        group.start_soon(write)
        group.start_soon(database.write, insert("kept"))
        await anyio.wait_all_tasks_blocked()
        cancelled.cancel()
        await anyio.lowlevel.checkpoint()
        busy.go.set()
        await database.write(insert("after"))
        assert await database.read(values) == ["kept", "after"]


async def test_a_cancelled_writer_spoils_nothing_that_is_under_way(path: Path) -> None:
    began, go = threading.Event(), threading.Event()

    def slow(connection: sqlite3.Connection) -> None:
        began.set()
        go.wait(10)
        insert("under way")(connection)

    async with Database.open(path, _TABLE) as database, anyio.create_task_group() as group:
        cancelled = anyio.CancelScope()

        async def write() -> None:
            with cancelled:
                await database.write(slow)

        group.start_soon(write)
        while not began.is_set():
            await anyio.sleep(0.001)
        cancelled.cancel()
        await anyio.wait_all_tasks_blocked()
        go.set()
        await database.write(insert("after"))
        assert await database.read(values) == ["under way", "after"]


async def test_cleanup_can_write_when_everything_is_cancelled(path: Path) -> None:
    """As when the daemon is stopped the hard way: a shielded take-down still records what it did."""
    with anyio.CancelScope() as everything:
        async with Journal.open(path) as journal:
            await journal.begin(sandbox("c1"))
            everything.cancel()
            with anyio.CancelScope(shield=True), anyio.fail_after(10):
                await journal.forget(("c1", "eth0"))
                assert await journal.all() == []
    assert everything.cancelled_caught
    assert read_journal(path) == []


async def test_a_journal_that_was_closed_says_so(path: Path) -> None:
    async with Journal.open(path) as journal:
        await journal.begin(sandbox())
    with pytest.raises(JournalError, match="closed"):
        await journal.all()
    assert not path.with_name("journal.db-wal").exists(), "closed in order"


# ---------------------------------------------------------------- begun and awaited later, or never


async def test_what_is_begun_is_in_order_with_what_follows(path: Path) -> None:
    async with Database.open(path, _TABLE) as database:
        first = database.begin(insert("first"))
        await database.write(insert("second"))
        assert await database.read(values) == ["first", "second"], "nobody has awaited it"
        assert await first == 1


async def test_an_add_is_recorded_before_anybody_awaits_it(journal: Journal) -> None:
    key = sandbox().key
    await journal.begin(sandbox())
    recorded = journal.attached(key, b"result", [(0, b"r0"), (1, b"r1")], "status")
    journal.status_written(key, "status")
    found = await journal.get(key)
    assert found is not None
    assert (found.state, found.result, found.status) == (State.ATTACHED, b"result", None)
    assert [item.result for item in found.attachments] == [b"r0", b"r1"]
    await recorded


async def test_what_is_begun_tells_of_its_failure_when_it_is_awaited(path: Path) -> None:
    async with Database.open(path, _TABLE) as database:
        refused = database.begin(lambda connection: connection.execute("INSERT INTO nowhere VALUES (1)"))
        await database.write(insert("after"))
        with pytest.raises(JournalError, match="nowhere"):
            await refused
        assert await database.read(values) == ["after"]


async def test_what_is_begun_need_not_be_awaited(path: Path, recwarn: pytest.WarningsRecorder) -> None:
    """As by an ADD that is called off while it tells the pod of its networks."""
    async with Database.open(path, _TABLE) as database:
        database.begin(insert("whatever becomes of the caller"))
        gc.collect()
        assert await database.read(values) == ["whatever becomes of the caller"]
    assert [str(each.message) for each in recwarn] == []


async def test_what_is_posted_is_in_order_with_the_rest_and_fails_alone(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Database.open(path, _TABLE) as database:
        before = database.commits
        database.post(insert("first"))
        database.post(lambda connection: connection.execute("INSERT INTO nowhere VALUES (1)"))
        database.post(insert("second"))
        await database.write(insert("third"))
        assert await database.read(values) == ["first", "second", "third"]
        assert database.commits == before + 1, "one transaction, so they were neighbours"
    assert [record.levelname for record in caplog.records if "nowhere" in record.getMessage()] == ["WARNING"]


async def test_what_is_posted_to_a_full_disk_is_lost_with_a_line_in_the_log(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with Database.open(path, _TABLE) as database:
        with full_disk(path):
            database.post(insert("y" * 1_000_000))
            assert await database.read(values) == []
        await database.write(insert("after"))
        assert await database.read(values) == ["after"]
    assert "the journal refused: " in caplog.text


async def test_after_the_end_nothing_hangs(path: Path) -> None:
    async with Database.open(path, _TABLE) as database:
        await database.write(insert("before"))
        caught = database.begin(insert("too late for this one"))
    database.post(insert("posted"))
    with anyio.fail_after(5):
        with pytest.raises(JournalError, match="was closed before"):
            await caught
        for late in (database.begin(insert("late")), database.write(insert("late")), database.read(values)):
            with pytest.raises(JournalError, match="closed"):
                await late
    async with Database.open(path, _TABLE) as database:
        assert await database.read(values) == ["before"]


# ---------------------------------------------------------------- taken for a DEL, and what is known without the disk


async def test_a_sandbox_is_read_and_marked_in_one(journal: Journal, path: Path) -> None:
    for container in ("c1", "c2"):
        await journal.begin(sandbox(container))
        await journal.attached((container, "eth0"), b"result", [(0, b"r0")], "status")
    before, whole = journal.commits, await journal.get(("c1", "eth0"))
    assert whole is not None
    taken = await journal.taken(("c1", "eth0"))
    assert journal.commits == before + 1
    assert taken == msgspec.structs.replace(whole, state=State.DELETING)
    assert {each.container_id: each.state for each in read_journal(path)} == {
        "c1": State.DELETING,
        "c2": State.ATTACHED,
    }
    assert await journal.taken(("c1", "eth0")) == taken, "a DEL comes again"


async def test_a_sandbox_that_nobody_has_is_not_looked_for(journal: Journal) -> None:
    await journal.begin(sandbox())
    before = journal.commits
    for key in (("c1", "eth1"), ("c2", "eth0")):
        assert key not in journal
        assert await journal.taken(key) is None
    assert journal.commits == before


async def test_what_there_is_is_known_from_its_begin_until_it_is_forgotten(path: Path) -> None:
    key = sandbox().key
    async with Journal.open(path) as journal:
        assert key not in journal
        await journal.begin(sandbox())
        assert key in journal
        await journal.taken(key)
        assert key in journal
    async with Journal.open(path) as journal:
        assert key in journal and ("c2", "eth0") not in journal
        assert await journal.taken(key) is not None
        await journal.forget(key)
        assert key not in journal
    async with Journal.open(path) as journal:
        assert key not in journal


async def test_a_begin_that_was_cancelled_too_late_is_known_all_the_same(path: Path) -> None:
    async with Journal.open(path) as journal, anyio.create_task_group() as group:
        busy, cancelled = Held(journal._database), anyio.CancelScope()

        async def begin() -> None:
            with cancelled:
                await journal.begin(sandbox())

        group.start_soon(begin)
        group.start_soon(busy.hold)  # in the same transaction
        await busy.until_it_holds()
        cancelled.cancel()
        busy.go.set()
        assert len(await journal.all()) == 1
        assert sandbox().key in journal


async def test_a_sandbox_that_a_full_disk_keeps_from_being_marked_stays_as_it_is(journal: Journal, path: Path) -> None:
    key = sandbox().key
    await journal.begin(sandbox(attachments=(attachment(runtime={"x": "y" * 100_000}),)))
    await journal.attached(key, b"result", [], None)
    before = await journal.get(key)
    with full_disk(path):
        with pytest.raises(JournalError) as caught:
            for _ in range(100):  # until what is left of the disk is full
                await journal.taken(key)
        assert "disk" in caught.value.hint
        assert key in journal
        assert await journal.get(key) is not None, "a DEL can go on with that"
    assert before is not None
    taken = await journal.taken(key)
    assert taken == msgspec.structs.replace(before, state=State.DELETING)


async def test_a_sandbox_is_not_forgotten_by_a_full_disk(journal: Journal, path: Path) -> None:
    key = sandbox().key
    await journal.begin(sandbox(attachments=(attachment(runtime={"x": "y" * 100_000}),)))
    with full_disk(path):
        with pytest.raises(JournalError):
            for _ in range(100):  # until what is left of the disk is full
                await journal.failed(key)
        with pytest.raises(JournalError):
            await journal.forget(key)
    assert key in journal and await journal.taken(key) is not None


# ---------------------------------------------------------------- disks


@contextmanager
def full_disk(path: Path) -> Iterator[None]:
    """No file of this process grows beyond what the database has now: writes fail as on a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    size = max(file.stat().st_size for file in path.parent.glob("journal.db*"))
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 4096, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


async def test_a_full_disk_refuses_writes_and_then_they_go_on(journal: Journal, path: Path) -> None:
    await journal.begin(sandbox("before"))
    await journal.attached(("before", "eth0"), b"r", [], None)
    large = attachment(runtime={"x": "y" * 100_000})
    with full_disk(path):
        with pytest.raises(JournalError) as caught:
            await journal.begin(sandbox("refused", attachments=(large,)))
        assert "disk" in caught.value.hint
        assert caught.value.retry
        assert [each.container_id for each in await journal.all()] == ["before"], "reading works"
    await journal.begin(sandbox("after", attachments=(large,)))
    assert sorted(each.container_id for each in await journal.all()) == ["after", "before"]
    check = await journal._database.read(lambda connection: connection.execute("PRAGMA integrity_check").fetchone())
    assert check == ("ok",)


async def test_a_reader_is_not_spoiled_by_a_writer_that_the_disk_refused(path: Path) -> None:
    def too_large(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO t VALUES (?)", ("y" * 1_000_000,))

    async with Database.open(path, _TABLE) as database, anyio.create_task_group() as group:
        await database.write(insert("before"))
        busy = Held(database)
        group.start_soon(busy.hold)
        await busy.until_it_holds()
        outcomes: list[object] = []

        async def write() -> None:
            with pytest.raises(JournalError):
                await database.write(too_large)
            outcomes.append("refused")

        async def read() -> None:
            outcomes.append(await database.read(values))

        group.start_soon(write)
        group.start_soon(read)
        await anyio.wait_all_tasks_blocked()
        with full_disk(path):
            busy.go.set()
            with anyio.fail_after(10):
                while len(outcomes) < 2:
                    await anyio.sleep(0.002)
    assert outcomes == ["refused", ["before"]]


async def test_what_a_full_disk_refused_is_not_there_after_a_restart(path: Path) -> None:
    async with Journal.open(path) as journal:
        with full_disk(path), pytest.raises(JournalError):
            await journal.begin(sandbox("refused", attachments=(attachment(runtime={"x": "y" * 100_000}),)))
    async with Journal.open(path) as journal:
        assert await journal.all() == []


@contextmanager
def as_nobody() -> Iterator[None]:
    """Permissions do not hold root back."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_directory_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    with as_nobody(), pytest.raises(JournalError, match=str(closed)):
        async with Journal.open(closed / "journal.db"):
            raise AssertionError("it must not open")


@pytest.mark.parametrize("place", ["absent/journal.db", "directory", "file/journal.db", "garbage"])
async def test_a_place_that_is_no_journal_is_an_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "directory").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "garbage").write_bytes(b"SQLite no more" * 1000)
    before = stat.S_IMODE((tmp_path / "directory").stat().st_mode)
    with pytest.raises(JournalError, match="cannot open the journal"):
        async with Journal.open(tmp_path / place):
            raise AssertionError("it must not open")
    assert stat.S_IMODE((tmp_path / "directory").stat().st_mode) == before
    with pytest.raises(JournalError, match="cannot read the journal"):
        read_journal(tmp_path / place)


async def test_only_root_may_read_it(journal: Journal, path: Path) -> None:
    await journal.begin(sandbox())
    assert {file.name: stat.S_IMODE(file.stat().st_mode) for file in path.parent.iterdir()} == {
        "journal.db": 0o600,
        "journal.db-wal": 0o600,
        "journal.db-shm": 0o600,
    }


async def test_a_newer_schema_is_refused_and_left_alone(path: Path) -> None:
    async with Journal.open(path) as journal:
        await journal.begin(sandbox())
    with sqlite3.connect(path) as connection:
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    connection.close()
    for use in (lambda: anyio.to_thread.run_sync(read_journal, path), lambda: _open(path)):
        with pytest.raises(JournalError, match=f"has schema {SCHEMA_VERSION + 1}, this program knows") as caught:
            await use()
        assert "run the version that wrote it" in caught.value.hint
    connection = sqlite3.connect(path)
    assert connection.execute("SELECT count(*) FROM sandbox").fetchone() == (1,)
    connection.close()


async def _open(path: Path) -> None:
    async with Journal.open(path):
        raise AssertionError("it must not open")


async def test_scripts_are_run_from_where_the_schema_is(path: Path) -> None:
    async with Database.open(path, _TABLE) as database:
        await database.write(insert("old"))
    added = (*_TABLE, "ALTER TABLE t ADD COLUMN y DEFAULT 7;")
    for _ in range(2):
        async with Database.open(path, added) as database:
            assert await database.read(lambda c: c.execute("SELECT x, y FROM t").fetchall()) == [("old", 7)]


async def test_a_script_that_fails_leaves_the_old_schema(path: Path) -> None:
    async with Database.open(path, _TABLE) as database:
        await database.write(insert("old"))
    broken = (*_TABLE, "CREATE TABLE u (x); CREATE TABLE t (x);")
    with pytest.raises(JournalError, match="already exists"):
        async with Database.open(path, broken):
            raise AssertionError("it must not open")
    async with Database.open(path, (*_TABLE, "CREATE TABLE u (x);")) as database:
        assert await database.read(values) == ["old"]


async def test_a_damaged_record_hides_no_other_and_frees_no_device(
    journal: Journal, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await journal.begin(sandbox("c1"))
    await journal.begin(sandbox("c2"))
    whole = await journal.all()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE attachment SET body = x'7b' WHERE container_id = 'c1'")
        connection.execute("UPDATE sandbox SET state = 'dancing' WHERE container_id = 'c1'")
    connection.close()
    for found in (await journal.all(), read_journal(path)):
        damaged, intact = found
        assert intact == whole[1]
        assert damaged.state is State.ATTACHED  # nothing is done to it before the runtime's DEL
        kept = [(each.position, each.network, each.ifname, each.device_id) for each in whole[0].attachments]
        assert [(each.position, each.network, each.ifname, each.device_id) for each in damaged.attachments] == kept
        assert {each.conf for each in damaged.attachments} == {b""}
    assert "of container c1 is damaged" in caplog.text
    await journal.forget(("c1", "eth0"))
    assert await journal.all() == whole[1:]


async def test_what_plugins_came_to_before_the_last_is_kept(journal: Journal) -> None:
    await journal.begin(sandbox("c1"))
    await journal.half_done(("c1", "eth0"), 0, b"bridge's")
    (found,) = await journal.all()
    assert (found.attachments[0].partial, found.attachments[0].result) == (b"bridge's", None)
    assert found.attachments[1].partial is None


# ---------------------------------------------------------------- crashes and other processes

WRITER = """
import sys, anyio
from pathlib import Path
from multus.journal import Journal
from multus.sandbox import Attachment, Sandbox, State

async def add(journal, name):
    items = tuple(Attachment(position=n, network="n", ifname=f"net{n}", conf=b"{}") for n in range(3))
    await journal.begin(Sandbox(container_id=name, ifname="eth0", state=State.ADDING, netns="/n", netns_id="1",
        boot_id="b", pod_namespace="d", pod_name="p", pod_uid="u", attachments=items))
    sys.stdout.write(name + "\\n")
    sys.stdout.flush()

async def main():
    async with Journal.open(Path(sys.argv[1])) as journal, anyio.create_task_group() as group:
        async def forever(worker):
            for number in range(100000):
                await add(journal, f"{sys.argv[2]}-{worker}-{number}")
        for worker in range(4):
            group.start_soon(forever, worker)

anyio.run(main)
"""


def writer(path: Path, name: str) -> "subprocess.Popen[str]":
    return subprocess.Popen([sys.executable, "-c", WRITER, str(path), name], stdout=subprocess.PIPE, text=True)


def test_after_kill_9_every_begin_that_returned_is_there(path: Path) -> None:
    promised: list[str] = []
    for round_, lines in enumerate((1, 37, 90)):
        with writer(path, f"r{round_}") as process:
            assert process.stdout is not None
            promised += [process.stdout.readline().strip() for _ in range(lines)]
            process.send_signal(signal.SIGKILL)
            promised += process.stdout.read().split()
        assert process.returncode == -signal.SIGKILL
        found = {each.container_id: len(each.attachments) for each in read_journal(path)}
        assert set(promised) <= set(found)
        assert set(found.values()) == {3}, "never a sandbox with some of its attachments"

    async def reopen() -> int:
        async with Journal.open(path) as journal:
            check = await journal._database.read(lambda c: c.execute("PRAGMA integrity_check").fetchone()[0])
            assert check == "ok"
            return len(await journal.all())

    assert anyio.run(reopen) >= len(promised)


def test_begin_is_on_disk_and_not_in_the_writers_memory(path: Path, tmp_path: Path) -> None:
    """What a copy of the files has, taken while the writer lives, is what a crash would leave."""

    async def run() -> None:
        async with Journal.open(path) as journal:
            await journal.begin(sandbox("c1"))
            copy = tmp_path / "copy"
            copy.mkdir()
            for name in ("journal.db", "journal.db-wal"):
                shutil.copy(tmp_path / name, copy / name)
            assert [each.container_id for each in read_journal(copy / "journal.db")] == ["c1"]

    anyio.run(run)


async def test_begin_waits_for_the_disk_and_later_writes_do_not(
    journal: Journal, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def synchronous(connection: sqlite3.Connection) -> int:
        return int(connection.execute("PRAGMA synchronous").fetchone()[0])

    await journal.begin(sandbox())
    assert await journal._database.read(synchronous) == 2, "FULL"
    await journal.deleting(sandbox().key)
    assert await journal._database.read(synchronous) == 1, "NORMAL"
    await journal.plugged(sandbox().key, attachment(7))
    assert await journal._database.read(synchronous) == 2


def test_readers_see_whole_sandboxes_while_the_daemon_writes(path: Path) -> None:
    with writer(path, "w") as process:
        assert process.stdout is not None
        try:
            process.stdout.readline()
            counts = []
            for _ in range(60):
                found = read_journal(path)
                counts.append(len(found))
                assert {len(each.attachments) for each in found} == {3}
                process.stdout.readline()
        finally:
            process.kill()
    assert counts == sorted(counts)
    assert counts[-1] > counts[0]


async def test_a_reader_sees_one_moment(journal: Journal, path: Path) -> None:
    """A sandbox that is forgotten between the reader's two questions keeps its attachments for the reader."""
    for number in range(100):
        await journal.begin(sandbox(f"c{number}"))
    broken: list[str] = []

    def read() -> None:
        for _ in range(40):
            broken.extend(each.container_id for each in read_journal(path) if len(each.attachments) != 2)

    async with anyio.create_task_group() as group:
        group.start_soon(anyio.to_thread.run_sync, read)
        for number in range(100):
            await journal.forget((f"c{number}", "eth0"))
    assert broken == []


def test_a_reader_changes_nothing(path: Path) -> None:
    with pytest.raises(JournalError, match="has multusd run"):
        read_journal(path)
    assert not path.exists()


async def test_any_directory_name_will_do(tmp_path: Path) -> None:
    odd = tmp_path / "100%25 ?mode=rwc#é"
    odd.mkdir()
    async with Journal.open(odd / "journal.db") as journal:
        await journal.begin(sandbox("c1"))
        assert [each.container_id for each in read_journal(odd / "journal.db")] == ["c1"]


async def test_another_process_with_a_lock_is_waited_for(journal: Journal, path: Path) -> None:
    other = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    other.execute("BEGIN IMMEDIATE")

    async def let_go() -> None:
        await anyio.wait_all_tasks_blocked()
        other.execute("ROLLBACK")

    async with anyio.create_task_group() as group:
        group.start_soon(journal.begin, sandbox("c1"))
        group.start_soon(let_go)
    other.close()
    assert len(await journal.all()) == 1


def test_records_do_not_grow_keys_that_an_older_release_would_lose() -> None:
    """A new field of Attachment needs a default, so that records of the release before can be read."""
    body = msgspec.json.encode({"position": 1, "network": "n", "ifname": "net1", "conf": "e30="})
    assert msgspec.json.decode(body, type=Attachment).conf == b"{}"
