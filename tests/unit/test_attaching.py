"""One sandbox's networks: what is made on a visit and what alone, in which order, and what a failure calls off."""

import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from typing import Any, Final

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus import attaching
from multus.attaching import AttachError, Attaching
from multus.cni.result import IP, Result
from multus.delegates.chain import NOTHING, Begin, Stretch
from multus.delegates.visit import Visit
from multus.errors import MultusError
from multus.sandbox import Attachment, Sandbox, State
from multus.slots import Priority, Queue, Slots

pytestmark = pytest.mark.anyio

PROMPT, HALF, REFUSES, ALONE = "prompt", "half", "refuses", "alone"
"""A network that is done on a visit; one whose first plugin is; one that turns out not to be; one that never is."""

_PATIENT: Final = 60.0  # seconds, longer than any test: in the queue, one goes beside another only where a test says so


def result(position: int) -> Result:
    return Result(ips=(IP(address=f"10.0.0.{position}/24"),))


def networks(*afters: Sequence[int]) -> Sandbox:
    """One network for each argument, which are the positions that it waits for."""
    return Sandbox(
        container_id="c1",
        ifname="eth0",
        state=State.ADDING,
        netns="/run/netns/none",
        netns_id="",
        boot_id="b",
        pod_namespace="ns",
        pod_name="web",
        pod_uid="u",
        attachments=tuple(
            Attachment(position=number, network=f"ns/n{number}", ifname=f"net{number}", conf=b"{}", after=tuple(after))
            for number, after in enumerate(afters)
        ),
    )


class World:
    """Networks that note what becomes of them. `fail` are the positions whose last step fails.

    `there` is called in the thread while a network is made on a visit, `away` is awaited while one is made alone.
    """

    def __init__(self, *kinds: str, fail: Sequence[int] = (), slots: int = 8) -> None:
        self.kinds = kinds
        self.fail = frozenset(fail)
        self.slots, self.total = Slots(slots), slots
        self.queue = Queue(patience=_PATIENT)
        self.events: list[tuple[str, int]] = []
        self.begun: dict[int, Stretch] = {}
        self.results: dict[int, Result] = {}
        self.running = self.most = 0
        self.ended = anyio.Event()
        self.there: Callable[[int], None] = lambda position: None
        self.away: Callable[[int], Awaitable[object]] = lambda position: anyio.lowlevel.checkpoint()
        self._visits: list[tuple[Visit, list[int]]] = []

    @property
    def visits(self) -> list[list[int]]:
        """The positions of each visit, in their order."""
        return [positions for _, positions in self._visits]

    def of(self, kind: str) -> list[int]:
        """Positions in the order of their events of a kind: "visit", "finish" (each begins), "made"."""
        return [position for event, position in self.events if event == kind]

    async def attach(self, sandbox: Sandbox) -> None:
        """Attach; whatever comes of it, every slot and the queue's turn are free again."""
        try:
            await Attaching(
                sandbox,
                self.results,
                begin=self._begin,
                visit=self._visit,
                finish=self._finish,
                slots=self.slots,
                queue=self.queue,
            ).run()
        finally:
            self.ended.set()
            with anyio.CancelScope(shield=True), anyio.fail_after(5):
                async with AsyncExitStack() as held, self.queue.turn():
                    for _ in range(self.total):
                        await held.enter_async_context(self.slots.hold(Priority.CHECK))

    def _begin(self, item: Attachment) -> Begin | None:
        return None if self.kinds[item.position] == ALONE else partial(self._work, item.position)

    def _visit(self, item: Attachment, work: Begin, visit: Visit) -> Stretch:
        return work(visit)

    def _work(self, position: int, visit: Visit) -> Stretch:
        if not self._visits or self._visits[-1][0] is not visit:
            self._visits.append((visit, []))
        self._visits[-1][1].append(position)
        self.events.append(("visit", position))
        self.there(position)
        if self.kinds[position] == REFUSES:
            return Stretch(0, False, None)
        if self.kinds[position] == HALF:
            return Stretch(1, False, result(position))
        self._made(position)
        return Stretch(2, True, result(position))

    async def _finish(self, item: Attachment, begun: Stretch) -> Result:
        self.events.append(("finish", item.position))
        self.begun[item.position] = begun
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.away(item.position)
        finally:
            self.running -= 1
        self._made(item.position)
        return result(item.position)

    def _made(self, position: int) -> None:
        if position in self.fail:
            raise MultusError(f"no network {position}")
        self.events.append(("made", position))


async def failure(world: World, sandbox: Sandbox) -> int:
    """Attach; the position of the network that is named as the one that failed."""
    with pytest.raises(AttachError) as caught:
        await world.attach(sandbox)
    assert f'network "ns/n{caught.value.attachment.position}"' in caught.value.message
    return caught.value.attachment.position


# ---------------------------------------------------------------- what is made where, and when


async def test_what_waits_for_nothing_is_made_on_one_visit_in_order() -> None:
    world = World(*[PROMPT] * 5)
    await world.attach(networks(*[()] * 5))
    assert world.visits == [[0, 1, 2, 3, 4]]
    assert world.results == {position: result(position) for position in range(5)}
    assert world.of("finish") == []


async def test_those_that_wait_for_one_of_a_visit_are_made_on_it_after_that() -> None:
    world = World(*[PROMPT] * 5)
    await world.attach(networks((), (0, 3), (0,), (0,), (0, 1)))
    assert world.visits == [[0, 2, 3, 1, 4]]


async def test_a_visit_is_made_in_a_thread_and_holds_one_slot() -> None:
    world, threads = World(*[PROMPT] * 3, ALONE, slots=2), set[int]()
    both = threading.Barrier(2)

    def there(position: int) -> None:
        threads.add(threading.get_ident())
        if position == 0:
            both.wait(5)  # the other slot is free for what is made alone meanwhile

    world.there = there
    world.away = lambda position: anyio.to_thread.run_sync(both.wait, 5)
    await world.attach(networks((), (), (), ()))
    assert len(threads) == 1 and threading.get_ident() not in threads


@pytest.mark.parametrize(("kind", "begun"), [(HALF, Stretch(1, False, result(0))), (REFUSES, NOTHING)])
async def test_what_waits_for_a_network_with_a_program_is_made_together_when_that_stands(
    kind: str, begun: Stretch
) -> None:
    world = World(kind, PROMPT, PROMPT, PROMPT, PROMPT)
    await world.attach(networks((), (0,), (0,), (), (1,)))
    assert world.visits == [[0, 3], [1, 2, 4]]
    assert world.begun == {0: begun}
    assert world.events.index(("made", 0)) < world.events.index(("visit", 1))
    assert world.results == {position: result(position) for position in range(5)}


async def test_what_waits_for_a_network_that_is_made_alone() -> None:
    world = World(ALONE, PROMPT, PROMPT, ALONE)
    await world.attach(networks((), (0,), (0,), (2,)))
    assert world.events == [
        *[("finish", 0), ("made", 0)],
        *[("visit", 1), ("made", 1), ("visit", 2), ("made", 2)],
        *[("finish", 3), ("made", 3)],
    ]
    assert world.begun == {0: NOTHING, 3: NOTHING}


async def test_networks_that_are_made_alone_are_made_at_the_same_time_as_a_visit() -> None:
    world, go = World(ALONE, ALONE, PROMPT), threading.Event()
    world.there = lambda position: assert_(go.wait(5))

    async def away(position: int) -> None:
        while world.most < 2 or not world.visits:
            await anyio.sleep(0.001)
        go.set()

    world.away = away
    with anyio.fail_after(10):
        await world.attach(networks((), (), ()))
    assert sorted(world.results) == [0, 1, 2]


def assert_(condition: bool) -> None:
    assert condition


async def test_a_network_that_is_made_during_a_visit_starts_what_waits_for_it() -> None:
    """Not only at the visit's end: 1 is made alone, and 2 begins while the visit still lasts."""
    world, go = World(PROMPT, ALONE, ALONE), threading.Event()
    world.there = lambda position: assert_(go.wait(5))

    async def away(position: int) -> None:
        if position == 2:
            go.set()

    world.away = away
    await world.attach(networks((), (), (1,)))
    assert world.of("made") == [1, 2, 0] or world.of("made") == [1, 0, 2]


# ---------------------------------------------------------------- failures


async def test_a_failure_on_a_visit_ends_it_and_what_was_begun_is_not_gone_on_with() -> None:
    world = World(PROMPT, HALF, PROMPT, PROMPT, ALONE, fail=[2])
    assert await failure(world, networks((), (), (), (), (1,))) == 2
    assert world.visits == [[0, 1, 2]]
    assert world.of("finish") == []
    assert world.results == {0: result(0)}


async def test_a_network_that_runs_alone_is_given_its_time_when_another_fails() -> None:
    world = World(ALONE, PROMPT, fail=[1])
    failed = anyio.Event()

    async def away(position: int) -> None:
        while not world.visits:
            await anyio.sleep(0.001)
        await anyio.wait_all_tasks_blocked()
        failed.set()

    world.away = away
    assert await failure(world, networks((), ())) == 1
    assert world.results == {0: result(0)}


@pytest.mark.parametrize("slow", [0, 1])
async def test_the_earliest_that_failed_is_named_whichever_failed_first(slow: int) -> None:
    world, gone = World(ALONE, ALONE, fail=[0, 1]), anyio.Event()

    async def away(position: int) -> None:
        while world.most < 2:
            await anyio.lowlevel.checkpoint()
        if position == slow:
            await gone.wait()
            await anyio.wait_all_tasks_blocked()
        gone.set()

    world.away = away
    assert await failure(world, networks((), ())) == 0
    assert sorted(world.of("finish")) == [0, 1]


async def test_the_time_that_is_given_has_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attaching, "_GRACE", 0.02)
    world = World(ALONE, PROMPT, fail=[1])
    world.away = lambda position: anyio.sleep_forever()
    with anyio.fail_after(5):
        assert await failure(world, networks((), ())) == 1
    assert world.results == {}


async def test_another_failure_does_not_make_that_time_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attaching, "_GRACE", 0.2)
    world, failed = World(ALONE, ALONE, ALONE, fail=[0, 1]), anyio.Event()

    async def away(position: int) -> None:
        while world.most < 3:
            await anyio.lowlevel.checkpoint()
        if position == 0:
            failed.set()
            return
        await failed.wait()
        await anyio.wait_all_tasks_blocked()
        monkeypatch.setattr(attaching, "_GRACE", _PATIENT)
        if position == 2:
            await anyio.sleep_forever()

    world.away = away
    with anyio.fail_after(5):
        assert await failure(world, networks((), (), ())) == 0


async def test_what_waits_for_a_slot_is_called_off_by_a_failure() -> None:
    world = World(ALONE, ALONE, PROMPT, PROMPT, fail=[0], slots=1)

    async def away(position: int) -> None:
        while world.slots.waiting < 2:  # 1, and the visit of 2 and 3
            await anyio.lowlevel.checkpoint()

    world.away = away
    assert await failure(world, networks((), (), (), ())) == 0
    assert world.events == [("finish", 0)]


async def test_a_failure_does_not_wait_for_slots_that_others_have() -> None:
    world = World(ALONE, ALONE, PROMPT, fail=[0], slots=1)

    async def away(position: int) -> None:
        while world.slots.waiting < 3:
            await anyio.lowlevel.checkpoint()

    async def removal() -> None:
        """It has the slot next, and for as long as the pod's networks are not called off."""
        while world.slots.waiting < 2:
            await anyio.lowlevel.checkpoint()
        async with world.slots.hold(Priority.DELETE):
            await world.ended.wait()

    world.away = away
    with anyio.fail_after(5):
        async with anyio.create_task_group() as group:
            group.start_soon(_expect, 0, world, networks((), (), ()))
            group.start_soon(removal)
    assert world.events == [("finish", 0)]


async def _expect(position: int, world: World, sandbox: Sandbox) -> None:
    assert await failure(world, sandbox) == position


async def test_what_waits_for_a_network_that_failed_is_not_begun() -> None:
    world = World(ALONE, PROMPT, ALONE, PROMPT, fail=[0])
    assert await failure(world, networks((), (0,), (0,), (2,))) == 0
    assert world.events == [("finish", 0)]


async def test_a_network_that_fails_at_once_calls_off_those_that_would_begin_beside_it() -> None:
    world = World(ALONE, ALONE, PROMPT, fail=[0])

    async def away(position: int) -> None:
        """Without a moment for anybody else, as a configuration that is refused before anything is done."""

    world.away = away
    assert await failure(world, networks((), (), ())) == 0
    assert world.events == [("finish", 0)]


async def test_a_visit_that_waits_in_the_queue_is_called_off_by_a_failure() -> None:
    world, failed = World(ALONE, PROMPT, fail=[0]), anyio.Event()

    async def away(position: int) -> None:
        await anyio.wait_all_tasks_blocked()  # the visit has its slot and waits for its turn
        failed.set()

    async def leave() -> None:
        async with world.queue.turn():
            held.set()
            await failed.wait()
            await anyio.wait_all_tasks_blocked()

    world.away, held = away, anyio.Event()
    async with anyio.create_task_group() as group:
        group.start_soon(leave)
        await held.wait()
        assert await failure(world, networks((), ())) == 0
    assert world.visits == []


async def test_a_failure_elsewhere_ends_a_visit_with_the_network_that_it_is_at() -> None:
    world, at_it, failed = World(ALONE, PROMPT, PROMPT, fail=[0]), threading.Event(), threading.Event()

    def there(position: int) -> None:
        at_it.set()
        assert failed.wait(5)

    async def away(position: int) -> None:
        while not at_it.is_set():
            await anyio.sleep(0.001)

    async def see() -> None:
        while world.running or not at_it.is_set():
            await anyio.sleep(0.001)
        failed.set()

    world.there, world.away = there, away
    async with anyio.create_task_group() as group:
        group.start_soon(see)
        assert await failure(world, networks((), (), ())) == 0
    assert world.visits == [[1]]
    assert world.results == {1: result(1)}


async def test_what_is_no_error_of_ours_ends_everything() -> None:
    world = World(PROMPT, PROMPT)
    world.there = lambda position: [][position]
    with pytest.raises(ExceptionGroup) as caught:
        await world.attach(networks((), ()))
    assert caught.group_contains(IndexError)
    assert world.visits == [[0]]


# ---------------------------------------------------------------- cancellation


async def test_a_del_ends_a_visit_between_two_networks() -> None:
    world, at_it, cancelled = World(PROMPT, PROMPT, ALONE), threading.Event(), threading.Event()

    def there(position: int) -> None:
        at_it.set()
        assert cancelled.wait(5)

    world.there = there
    scope = anyio.CancelScope()

    async def attach() -> None:
        with scope:
            await world.attach(networks((), (), (0,)))

    async with anyio.create_task_group() as group:
        group.start_soon(attach)
        while not at_it.is_set():
            await anyio.sleep(0.001)
        scope.cancel()
        cancelled.set()
    assert scope.cancelled_caught
    assert world.visits == [[0]]
    assert world.of("finish") == []
    assert world.results == {0: result(0)}, "it is there, and whoever undoes it has to know"


@pytest.mark.parametrize("kinds", [(ALONE, PROMPT), (PROMPT, ALONE), (HALF, ALONE)])
async def test_a_del_while_networks_wait_for_one_that_is_made_alone(kinds: tuple[str, ...]) -> None:
    world, scope = World(*kinds, slots=1), anyio.CancelScope()

    async def away(position: int) -> None:
        scope.cancel()
        await anyio.sleep_forever()

    world.away = away
    with scope:
        await world.attach(networks((), (0,)))
    assert scope.cancelled_caught
    assert len(world.of("finish")) == 1


# ---------------------------------------------------------------- whatever the networks are

_KINDS: Final = st.sampled_from([PROMPT, HALF, REFUSES, ALONE])


@st.composite
def pods(draw: st.DrawFn) -> tuple[Sandbox, list[str]]:
    """Networks of all kinds, and who waits for whom: never in a circle, but not always for one before it."""
    kinds = draw(st.lists(_KINDS, min_size=1, max_size=7))
    order = draw(st.permutations(range(len(kinds))))
    afters: dict[int, list[int]] = {}
    for place, position in enumerate(order):
        afters[position] = sorted(draw(st.sets(st.sampled_from(order[:place])))) if place else []
    return networks(*(afters[position] for position in range(len(kinds)))), kinds


def check(world: World, sandbox: Sandbox) -> None:
    """What holds whatever happened: nothing is begun twice, nor before what it waits for."""
    begun = Counter(event for event in world.events if event[0] != "made")
    assert set(begun.values()) <= {1}
    assert len(world.of("made")) == len(set(world.of("made")))
    assert set(world.of("made")) == set(world.results)
    for item in sandbox.attachments:
        mine = [place for place, (_, position) in enumerate(world.events) if position == item.position]
        for other in item.after:
            assert not mine or world.events.index(("made", other)) < mine[0]
    for position in world.of("finish"):
        assert (("visit", position) in world.events) is (world.kinds[position] != ALONE)
    assert world.most <= world.total


@settings(deadline=None, max_examples=150)
@given(pod=pods(), slots=st.integers(1, 3))
def test_each_network_is_made_once_and_after_those_that_it_waits_for(
    pod: tuple[Sandbox, list[str]], slots: int
) -> None:
    sandbox, kinds = pod
    world = World(*kinds, slots=slots)
    anyio.run(world.attach, sandbox)
    check(world, sandbox)
    assert world.results == {position: result(position) for position in range(len(kinds))}
    if set(kinds) == {PROMPT}:
        assert len(world.visits) == 1


@settings(deadline=None, max_examples=150)
@given(pod=pods(), fail=st.sets(st.integers(0, 6), min_size=1), slots=st.integers(1, 3))
def test_whatever_fails_the_rest_is_called_off_and_the_earliest_is_named(
    pod: tuple[Sandbox, list[str]], fail: set[int], slots: int
) -> None:
    sandbox, kinds = pod
    world = World(*kinds, fail=sorted(fail & set(range(len(kinds)))), slots=slots)

    async def run() -> Any:
        try:
            await world.attach(sandbox)
        except AttachError as error:
            return error.attachment.position

    named = anyio.run(run)
    check(world, sandbox)
    last = {position: event for event, position in world.events}
    failed = {p for p in world.fail if last.get(p) == "finish" or (kinds[p] == PROMPT and last.get(p) == "visit")}
    assert named == (min(failed) if failed else None)
    assert failed or not world.fail
