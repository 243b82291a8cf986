"""Bounded, DEL first, one operation a container at a time."""

import anyio
import pytest

from multus.slots import CalledOffError, Gone, Lanes, Priority, Queue, Slots

pytestmark = pytest.mark.anyio


async def _until(condition: object) -> None:
    with anyio.fail_after(5):
        while not condition():  # type: ignore[operator]
            await anyio.lowlevel.checkpoint()


async def test_never_more_than_the_slots_run() -> None:
    slots, running, most = Slots(3), 0, 0

    async def work() -> None:
        nonlocal running, most
        async with slots.hold(Priority.ADD):
            running += 1
            most = max(most, running)
            await anyio.lowlevel.checkpoint()
            running -= 1

    async with anyio.create_task_group() as group:
        for _ in range(20):
            group.start_soon(work)
    assert most == 3


async def test_a_delete_overtakes_waiting_adds() -> None:
    slots, order = Slots(1), []

    async def work(name: str, priority: Priority) -> None:
        async with slots.hold(priority):
            order.append(name)

    async with anyio.create_task_group() as group, slots.hold(Priority.ADD):
        for name, priority in [("add1", Priority.ADD), ("check", Priority.CHECK), ("add2", Priority.ADD)]:
            group.start_soon(work, name, priority)
        await _until(lambda: slots.waiting == 3)
        group.start_soon(work, "delete", Priority.DELETE)
        await _until(lambda: slots.waiting == 4)
    assert order == ["delete", "add1", "add2", "check"]


async def test_a_cancelled_waiter_leaves_its_slot_to_the_next() -> None:
    slots, ran = Slots(1), anyio.Event()

    async def waits(scope: anyio.CancelScope) -> None:
        with scope:
            async with slots.hold(Priority.DELETE):
                raise AssertionError("was cancelled before its turn")

    async def runs() -> None:
        async with slots.hold(Priority.ADD):
            ran.set()

    scope = anyio.CancelScope()
    async with anyio.create_task_group() as group:
        async with slots.hold(Priority.ADD):
            group.start_soon(waits, scope)
            group.start_soon(runs)
            await _until(lambda: slots.waiting == 2)
        # The slot is granted to `waits` now, which is cancelled before it runs again.
        scope.cancel()
        with anyio.fail_after(5):
            await ran.wait()
    async with slots.hold(Priority.ADD):
        pass


async def test_more_slots_while_running() -> None:
    slots, ran = Slots(1), anyio.Event()

    async def work() -> None:
        async with slots.hold(Priority.ADD):
            ran.set()

    async with anyio.create_task_group() as group, slots.hold(Priority.ADD):
        group.start_soon(work)
        await _until(lambda: slots.waiting == 1)
        slots.resize(1)
        with anyio.fail_after(5):
            await ran.wait()


def test_no_slots_make_no_sense() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Slots(0)


async def test_a_delete_calls_off_the_add_and_waits_for_its_cleanup() -> None:
    lanes, events, started = Lanes(), [], anyio.Event()

    async def add() -> None:
        with pytest.raises(CalledOffError):
            async with lanes.adding("c1"):
                started.set()
                try:
                    await anyio.sleep_forever()
                finally:
                    with anyio.CancelScope(shield=True):
                        await anyio.lowlevel.checkpoint()
                        events.append("undone")

    async with anyio.create_task_group() as group:
        group.start_soon(add)
        await started.wait()
        with anyio.fail_after(5):
            async with lanes.holding("c1", calling_off=True):
                events.append("delete")
    assert events == ["undone", "delete"]
    assert not lanes.busy("c1")


async def test_a_delete_calls_off_every_add_that_waits_before_it() -> None:
    """Two ADDs of one container: the second waits for the first; a DEL must not be followed by it."""
    lanes, events, started = Lanes(), [], anyio.Event()

    async def add(name: str) -> None:
        with pytest.raises(CalledOffError):
            async with lanes.adding("c1"):
                events.append(name)
                started.set()
                await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(add, "first")
        await started.wait()
        group.start_soon(add, "second")
        await anyio.wait_all_tasks_blocked()
        with anyio.fail_after(5):
            async with lanes.holding("c1", calling_off=True):
                pass
    assert events == ["first"]


async def test_containers_do_not_wait_for_each_other() -> None:
    lanes = Lanes()
    async with lanes.holding("c1"):
        with anyio.fail_after(5):
            async with lanes.holding("c2"):
                assert lanes.busy("c1")
                assert lanes.busy("c2")


@pytest.mark.parametrize(
    ("adding", "deleting", "called_off"),
    [("eth0", "eth0", True), ("eth0", "eth1", False), ("eth0", "", True), ("", "eth1", True)],
)
async def test_a_del_calls_off_the_adds_of_its_interface_name(adding: str, deleting: str, called_off: bool) -> None:
    lanes = Lanes()
    begun = anyio.Event()
    ends: list[str] = []

    async def add() -> None:
        try:
            async with lanes.adding("c1", adding):
                begun.set()
                await anyio.sleep(0.05 if not called_off else 3600)
                ends.append("added")
        except CalledOffError:
            ends.append("called off")

    with anyio.fail_after(10):
        async with anyio.create_task_group() as group:
            group.start_soon(add)
            await begun.wait()
            async with lanes.holding("c1", deleting, calling_off=True):
                ends.append("deleted")
    assert ends == (["called off", "deleted"] if called_off else ["added", "deleted"])


def test_what_is_gone_is_remembered_within_bounds() -> None:
    gone = Gone()
    for number in range(5000):
        gone.add((f"c{number}", "eth0"))
    assert ("c0", "eth0") not in gone
    assert ("c4999", "eth0") in gone
    gone.discard(("c4999", "eth0"))
    gone.discard(("c4999", "eth0"))
    assert ("c4999", "eth0") not in gone


# ---------------------------------------------------------------- one after another

_PATIENT = 60.0  # seconds, longer than any test


class Line:
    """Tasks in a queue: each notes when it is its turn, and stays until it is told to go."""

    def __init__(self, patience: float) -> None:
        self.queue = Queue(patience=patience)
        self.turns: list[str] = []
        self.began: dict[str, float] = {}
        self.running: set[str] = set()
        self.go: dict[str, anyio.Event] = {}
        self.scopes: dict[str, anyio.CancelScope] = {}

    async def stand(self, name: str) -> None:
        self.go[name], self.scopes[name] = anyio.Event(), anyio.CancelScope()
        with self.scopes[name]:
            async with self.queue.turn():
                self.turns.append(name)
                self.began[name] = anyio.current_time()
                self.running.add(name)
                try:
                    await self.go[name].wait()
                finally:
                    self.running.discard(name)

    async def has(self, *names: str) -> None:
        """Wait until so many have had their turn, in this order."""
        await _until(lambda: len(self.turns) >= len(names))
        assert tuple(self.turns) == names


async def test_turns_come_one_after_another_in_order_of_arrival() -> None:
    line = Line(_PATIENT)
    names = [f"t{number}" for number in range(10)]
    async with anyio.create_task_group() as group:
        for name in names:
            group.start_soon(line.stand, name)
        for number, name in enumerate(names, start=1):
            await line.has(*names[:number])
            await anyio.wait_all_tasks_blocked()
            assert line.running == {name}
            line.go[name].set()
    assert line.turns == names


async def test_the_next_turn_begins_beside_one_that_takes_too_long() -> None:
    patience = 0.05
    line = Line(patience)
    async with anyio.create_task_group() as group:
        for name in "abc":
            group.start_soon(line.stand, name)
        await line.has("a", "b", "c")
        assert line.running == {"a", "b", "c"}
        for name in "abc":
            line.go[name].set()
    assert line.began["b"] - line.began["a"] >= patience * 0.9
    assert line.began["c"] - line.began["b"] >= patience * 0.9, "each may take its time, also those beside another"


async def test_the_end_of_one_that_took_too_long_is_not_that_of_the_one_beside_it() -> None:
    line = Line(0.01)
    async with anyio.create_task_group() as group:
        group.start_soon(line.stand, "slow")
        group.start_soon(line.stand, "beside")
        await line.has("slow", "beside")
        line.queue._patience = _PATIENT
        line.go["slow"].set()
        group.start_soon(line.stand, "next")
        await anyio.wait_all_tasks_blocked()
        assert line.running == {"beside"}
        line.go["beside"].set()
        await line.has("slow", "beside", "next")
        line.go["next"].set()


@pytest.mark.parametrize("cancelled", [["b"], ["c"], ["b", "c"], ["c", "b"]])
async def test_a_cancelled_waiter_does_not_keep_the_others_waiting(cancelled: list[str]) -> None:
    """Whether it is the next one or not."""
    line = Line(_PATIENT)
    async with anyio.create_task_group() as group:
        for name in "abcd":
            group.start_soon(line.stand, name)
            await anyio.wait_all_tasks_blocked()
        for name in cancelled:
            line.scopes[name].cancel()
        await anyio.wait_all_tasks_blocked()
        assert line.running == {"a"}
        left = [name for name in "abcd" if name not in cancelled]
        for number, name in enumerate(left, start=1):
            await line.has(*left[:number])
            line.go[name].set()


async def test_one_that_is_cancelled_in_its_turn_leaves_it() -> None:
    line = Line(_PATIENT)
    async with anyio.create_task_group() as group:
        group.start_soon(line.stand, "a")
        group.start_soon(line.stand, "b")
        await line.has("a")
        line.scopes["a"].cancel()
        await line.has("a", "b")
        assert line.running == {"b"}
        line.go["b"].set()


async def test_an_error_leaves_the_turn_to_the_next() -> None:
    queue = Queue(patience=_PATIENT)
    with anyio.fail_after(5):
        for _ in range(3):
            with pytest.raises(ZeroDivisionError):
                async with queue.turn():
                    raise ZeroDivisionError
        async with queue.turn():
            pass
