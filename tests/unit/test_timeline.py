"""Timelines: what a call's spans say, and what of them is kept."""

import json
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import pytest

from multus import timeline
from multus.errors import MultusError
from multus.timeline import Timelines, queued, received, span

pytestmark = pytest.mark.anyio

ENV = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=web;K8S_POD_UID=u",
}


def kept(timelines: Timelines, container: str = "") -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(timelines.encode(container))
    return found


async def test_spans_are_of_the_call_that_runs_wherever_it_runs() -> None:
    timelines = Timelines()

    async def network(ifname: str) -> None:
        with span("network", f"default/{ifname}", ifname):
            await anyio.sleep(0.01)
            await anyio.to_thread.run_sync(in_thread, ifname)

    def in_thread(ifname: str) -> None:
        with span("ipam", "host-local", ifname):
            pass

    async def call(container: str, *ifnames: str) -> None:
        with timelines.recording({**ENV, "CNI_CONTAINERID": container}):
            async with anyio.create_task_group() as group:
                for ifname in ifnames:
                    group.start_soon(network, ifname)

    async with anyio.create_task_group() as group:
        group.start_soon(call, "a", "net1", "net2")
        group.start_soon(call, "b", "net9")
    (first,) = kept(timelines, "a")
    (second,) = kept(timelines, "b")
    for each, wanted in ((first, {"net1", "net2"}), (second, {"net9"})):
        assert (each["command"], each["pod"], each["outcome"]) == ("ADD", "ns/web", "ok")
        spans = each["spans"]
        assert {(one["phase"], one["ifname"]) for one in spans} == {
            (phase, ifname) for phase in ("network", "ipam") for ifname in wanted
        }
        for one in spans:
            assert 0 <= one["begin"] <= one["end"] <= each["seconds"]
    assert [one["what"] for one in first["spans"] if one["phase"] == "network"] == [
        "default/net1",
        "default/net2",
    ]


async def test_a_call_begins_when_its_request_came_and_queues_until_its_turn() -> None:
    timelines = Timelines()
    before = monotonic()
    received()
    await anyio.sleep(0.02)
    with timelines.recording(ENV):
        await anyio.sleep(0.02)
        queued()
        await anyio.sleep(0.02)
    (call,) = kept(timelines)
    (queue,) = call["spans"]
    assert queue["phase"] == "queue"
    assert queue["begin"] == 0
    assert 0.04 <= queue["end"] <= call["seconds"] - 0.02
    assert call["seconds"] <= monotonic() - before


async def test_the_outcome_is_kept_and_the_failed_phase_with_it() -> None:
    timelines = Timelines()
    with pytest.raises(MultusError), timelines.recording(ENV), span("resolve"):
        raise MultusError("no")
    with anyio.CancelScope() as scope, timelines.recording(ENV), span("status"):
        scope.cancel()
        await anyio.sleep(1)
    assert [(each["outcome"], [one["phase"] for one in each["spans"]]) for each in kept(timelines)] == [
        ("error", ["resolve"]),
        ("cancelled", ["status"]),
    ]


async def test_the_last_calls_are_kept_and_each_phase_is_told_once() -> None:
    told: list[tuple[str, str]] = []
    timelines = Timelines(observe=lambda command, phase, seconds: told.append((command, phase)))
    for number in range(timeline._KEPT + 3):
        with timelines.recording({**ENV, "CNI_COMMAND": "DEL", "CNI_CONTAINERID": f"c{number}"}), span("journal"):
            pass
    containers = [each["container_id"] for each in kept(timelines)]
    assert containers == [f"c{number}" for number in range(3, timeline._KEPT + 3)]
    assert told == [("DEL", "journal")] * (timeline._KEPT + 3)


async def test_other_commands_and_spans_outside_a_call_leave_nothing() -> None:
    timelines = Timelines()
    with span("journal"):
        queued()
    for command in ("CHECK", "STATUS", "GC", "VERSION", "ADDS", ""):
        with timelines.recording({**ENV, "CNI_COMMAND": command}), span("journal"):
            pass
    assert kept(timelines) == []


@pytest.mark.parametrize(("args", "pod"), [("", ""), ("nonsense;=;A=b=c", ""), ("K8S_POD_NAME=x", "/x")])
async def test_a_pod_that_is_not_named_is_left_out(args: str, pod: str) -> None:
    timelines = Timelines()
    with timelines.recording({"CNI_COMMAND": "ADD", "CNI_ARGS": args}):
        pass
    assert [each["pod"] for each in kept(timelines)] == [pod]
