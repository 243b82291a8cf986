"""Events never hold anybody up, and never flood anybody."""

import anyio
import pytest

from multus.kube.errors import ClusterError
from multus.kube.events import Announcer, Event
from multus.kube.objects import Pod

pytestmark = pytest.mark.anyio

WEB = Pod(namespace="shop", name="web", uid="u")


class Room:
    """An announcer whose clock is set by hand; `sent` is what came out."""

    def __init__(self, fails: int = 0) -> None:
        self.now = 0.0
        self.sent: list[Event] = []
        self.fails = fails
        self.announcer = Announcer(self.send, clock=lambda: self.now, wall=lambda: 1000.0 + self.now, pace=0.0)

    async def send(self, event: Event) -> None:
        if self.fails > 0:
            self.fails -= 1
            raise ClusterError("told to fail")
        self.sent.append(event)

    def say(self, message: str, pod: Pod = WEB, reason: str = "R") -> None:
        self.announcer.announce(pod, kind="Warning", reason=reason, message=message)

    async def drain(self) -> list[str]:
        async with anyio.create_task_group() as group:
            group.start_soon(self.announcer.run)
            with anyio.fail_after(5):
                while self.announcer._queue:
                    await anyio.sleep(0)
            await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        return [event.message for event in self.sent]


async def test_in_order_with_the_time_they_were_made() -> None:
    room = Room()
    room.say("a")
    room.now = 5.0
    room.say("b")
    assert await room.drain() == ["a", "b"]
    assert room.sent[1] == Event(
        namespace="shop", name="web", uid="u", kind="Warning", reason="R", message="b", at=1005.0
    )


async def test_the_same_is_not_repeated_for_a_while() -> None:
    room = Room()
    for now in (0.0, 30.0, 59.0, 61.0):
        room.now = now
        room.say("a")
    room.say("a", reason="other")
    room.say("a", Pod(namespace="shop", name="other"))
    assert await room.drain() == ["a", "a", "a", "a"]
    assert [event.at for event in room.sent] == [1000.0, 1061.0, 1061.0, 1061.0]


async def test_a_pod_has_a_budget() -> None:
    room = Room()
    for number in range(40):
        room.say(str(number))
    assert len(await room.drain()) == 25
    room.now = 299.0
    room.say("too early")
    room.now = 301.0
    room.say("one more")
    room.say("but one")
    room.say("of another", Pod(namespace="shop", name="other"))
    assert (await room.drain())[25:] == ["one more", "of another"]


async def test_the_queue_is_bounded_and_that_is_said(caplog: pytest.LogCaptureFixture) -> None:
    room = Room()
    for number in range(300):
        room.say("x", Pod(namespace="shop", name=f"p{number}"))
    assert len(await room.drain()) == 256
    assert "44 events of pods were lost" in caplog.text


async def test_budgets_are_forgotten_some_day() -> None:
    room = Room()
    for number in range(3000):
        room.say("x", Pod(namespace="shop", name=f"p{number}"))
    assert len(room.announcer._budgets) == 1024


async def test_a_failure_is_logged_and_the_next_is_sent(caplog: pytest.LogCaptureFixture) -> None:
    room = Room(fails=1)
    room.say("a")
    room.say("b")
    assert await room.drain() == ["b"]
    assert "event of pod shop/web is lost: told to fail" in caplog.text


async def test_waits_for_news() -> None:
    room = Room()
    async with anyio.create_task_group() as group:
        group.start_soon(room.announcer.run)
        await anyio.wait_all_tasks_blocked()
        room.say("late")
        with anyio.fail_after(5):
            while not room.sent:
                await anyio.sleep(0)
        group.cancel_scope.cancel()


async def test_nobody_to_tell_it_about() -> None:
    room = Room()
    room.say("x", Pod(namespace="", name=""))
    assert await room.drain() == []
