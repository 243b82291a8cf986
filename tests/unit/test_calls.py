"""Calls on behalf of a connected caller: bounded, called off when he hangs up, waited for at the end."""

from collections.abc import Awaitable, Callable

import anyio
import anyio.abc
import anyio.lowlevel
import pytest

from multus.calls import Calls
from multus.cni.errors import CNIError, Code
from multus.errors import Fault, MultusError

pytestmark = pytest.mark.anyio


class Caller(anyio.abc.ByteReceiveStream):
    """One end of a connection: quiet until it hangs up."""

    def __init__(self, *, resets: bool = False) -> None:
        self._gone = anyio.Event()
        self._resets = resets
        self.chatter = 0

    def hang_up(self) -> None:
        self._gone.set()

    async def receive(self, max_bytes: int = 65536) -> bytes:
        if self.chatter:
            self.chatter -= 1
            await anyio.lowlevel.checkpoint()
            return b"x"
        await self._gone.wait()
        raise anyio.BrokenResourceError if self._resets else anyio.EndOfStream

    async def aclose(self) -> None:
        await anyio.lowlevel.checkpoint()


class Work:
    """An operation that runs until it is let go; remembers how it ended."""

    def __init__(self, answer: bytes = b"done") -> None:
        self.began, self.go, self.ended = anyio.Event(), anyio.Event(), ""
        self._answer = answer

    async def __call__(self) -> bytes:
        self.began.set()
        try:
            await self.go.wait()
        except anyio.get_cancelled_exc_class():
            self.ended = "cancelled"
            raise
        self.ended = "done"
        return self._answer


Outcomes = list[bytes | CNIError | None]


def attend(group: anyio.abc.TaskGroup, calls: Calls, caller: Caller, command: str, work: Work) -> Outcomes:
    outcomes: Outcomes = []

    async def run() -> None:
        outcomes.append(await calls.attend(caller, command, work))

    group.start_soon(run)
    return outcomes


async def settle() -> None:
    await anyio.wait_all_tasks_blocked()


async def test_the_outcome_is_the_answer() -> None:
    async def work() -> bytes:
        return b"result"

    caller = Caller()
    caller.chatter = 5  # what follows a call is not kept, and is no hang-up
    assert await Calls(limit=1).attend(caller, "ADD", work) == b"result"


class _OperatorsError(MultusError):
    fault = Fault.OPERATOR


class _PassingError(MultusError):
    retry = True


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (CNIError(Code.NOT_AVAILABLE, "x"), 50),
        (_OperatorsError("x"), 7),
        (_PassingError("x"), 11),
        (MultusError("x"), 999),
        (KeyError("x"), 999),
        (TimeoutError("x"), 999),
        (ExceptionGroup("x", [KeyError("x")]), 999),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL"])
async def test_errors_are_outcomes(caplog: pytest.LogCaptureFixture, error: Exception, code: int, command: str) -> None:
    async def work() -> bytes:
        raise error

    outcome = await Calls(limit=1).attend(Caller(), command, work)
    assert isinstance(outcome, CNIError)
    assert outcome.code == code
    assert ("a defect of ours" in caplog.text) == (not isinstance(error, MultusError))


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("command", ["ADD", "CHECK", "STATUS", ""])
async def test_a_caller_that_hangs_up_calls_off_what_takes(command: str, resets: bool) -> None:
    calls, caller, work = Calls(limit=1), Caller(resets=resets), Work()
    async with anyio.create_task_group() as group:
        outcomes = attend(group, calls, caller, command, work)
        await work.began.wait()
        caller.hang_up()
    assert (work.ended, outcomes) == ("cancelled", [None])
    assert await calls.attend(Caller(), "ADD", _answer(b"next")) == b"next", "its place is free again"


def _answer(data: bytes) -> Callable[[], Awaitable[bytes]]:
    async def work() -> bytes:
        return data

    return work


@pytest.mark.parametrize("command", ["DEL", "GC"])
async def test_what_gives_back_goes_on_without_its_caller(command: str) -> None:
    calls, caller, work = Calls(limit=1), Caller(), Work()
    async with anyio.create_task_group() as group:
        outcomes = attend(group, calls, caller, command, work)
        await work.began.wait()
        caller.hang_up()
        await settle()
        assert work.ended == ""
        work.go.set()
    assert (work.ended, outcomes) == ("done", [None])


async def test_takers_are_bounded_and_givers_pass_them() -> None:
    calls = Calls(limit=2)
    takers = [Work() for _ in range(3)]
    giver = Work()
    async with anyio.create_task_group() as group:
        for work in takers:
            attend(group, calls, Caller(), "ADD", work)
        await settle()
        assert [work.began.is_set() for work in takers] == [True, True, False]
        attend(group, calls, Caller(), "DEL", giver)
        await settle()
        assert giver.began.is_set()
        takers[1].go.set()
        await settle()
        assert takers[2].began.is_set()
        for work in (*takers, giver):
            work.go.set()
    assert {work.ended for work in takers} == {"done"}


async def test_a_caller_that_hangs_up_while_he_waits_is_never_begun() -> None:
    calls, first, second, caller = Calls(limit=1), Work(), Work(), Caller()
    async with anyio.create_task_group() as group:
        attend(group, calls, Caller(), "ADD", first)
        await first.began.wait()
        outcomes = attend(group, calls, caller, "ADD", second)
        await settle()
        caller.hang_up()
        await settle()
        first.go.set()
    assert not second.began.is_set()
    assert outcomes == [None]


async def test_draining_starts_nothing_and_waits_for_what_runs() -> None:
    calls, work = Calls(limit=1), Work()
    async with anyio.create_task_group() as group:
        idle = anyio.Event()

        async def run() -> None:
            with calls.counted():
                assert await calls.attend(Caller(), "ADD", work) == b"done"

        async def wait() -> None:
            await calls.idle()
            idle.set()

        group.start_soon(run)
        await work.began.wait()
        assert calls.running == 1
        calls.drain()
        group.start_soon(wait)
        assert await calls.attend(Caller(), "DEL", Work()) is None, "to be asked of the successor"
        await settle()
        assert not idle.is_set()
        work.go.set()
    assert idle.is_set()
    assert calls.running == 0


async def test_nothing_runs_is_idle_at_once() -> None:
    calls = Calls(limit=1)
    with calls.counted():
        pass
    calls.drain()
    with anyio.fail_after(1):
        await calls.idle()


async def test_a_call_that_is_cancelled_from_outside_stays_cancelled() -> None:
    calls, work = Calls(limit=1), Work()
    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as group:
            attend(group, calls, Caller(), "DEL", work)
            await work.began.wait()
            scope.cancel()
    assert scope.cancelled_caught
    assert work.ended == "cancelled"
