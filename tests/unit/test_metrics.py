"""Metrics: what is counted, and how it is served."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import pytest

from devices.offers import Counts
from devices.statistics import PoolStatistics, Statistics
from multus.errors import MultusError
from multus.journal import JournalError
from multus.kube.requests import get_pod
from multus.metrics import Metrics, MetricsError, listening, serve
from multus.sandbox import Sandbox, State

pytestmark = pytest.mark.anyio


def sandbox(container_id: str, state: State, failures: int = 0) -> Sandbox:
    return Sandbox(
        container_id=container_id,
        ifname="eth0",
        state=state,
        netns="",
        netns_id="",
        boot_id="",
        pod_namespace="default",
        pod_name="web",
        pod_uid="",
        failures=failures,
    )


def value(metrics: Metrics, line: str) -> float:
    """The value of one series, by its name and labels as they are written."""
    for each in metrics.text().decode().splitlines():
        name, _, number = each.rpartition(" ")
        if name == line:
            return float(number)
    raise AssertionError(f"{line} is not among\n{metrics.text().decode()}")


@asynccontextmanager
async def served(metrics: Metrics, journal: Any) -> AsyncIterator[int]:
    async with listening("127.0.0.1", 0) as listener, anyio.create_task_group() as group:
        await group.start(serve, metrics, listener, journal)
        yield int(listener.extra(anyio.abc.SocketAttribute.local_port))
        group.cancel_scope.cancel()


async def ask(port: int, text: bytes) -> bytes:
    async with await anyio.connect_tcp("127.0.0.1", port) as stream:
        await stream.send(text)
        answer = b""
        try:
            while True:
                answer += await stream.receive()
        except anyio.EndOfStream:
            return answer


async def nothing() -> list[Sandbox]:
    return []


def test_delegates_are_measured_by_what_came_of_them() -> None:
    metrics = Metrics()
    with metrics.delegate("ADD", "default/net", "macvlan"):
        pass
    with pytest.raises(MultusError), metrics.delegate("ADD", "default/net", "macvlan"):
        raise MultusError("no")
    labels = 'command="ADD",delegate="macvlan",network="default/net"'
    with metrics.delegate("ADD", "default/net", "macvlan") as forget:
        forget()  # the rest of it is measured when it is done
    for outcome in ("ok", "error"):
        assert value(metrics, f'multus_delegate_seconds_count{{{labels},outcome="{outcome}"}}') == 1


async def test_what_is_called_off_is_no_failure() -> None:
    metrics = Metrics()
    with anyio.CancelScope() as scope:
        scope.cancel()
        with metrics.delegate("ADD", "n", "bridge"):
            await anyio.sleep(1)
    labels = 'command="ADD",delegate="bridge",network="n",outcome="cancelled"'
    assert value(metrics, f"multus_delegate_seconds_count{{{labels}}}") == 1


def test_commands_that_do_not_exist_share_one_label() -> None:
    metrics = Metrics()
    for command in ("ADD", "x" * 1000, "y"):
        with metrics.call(command):
            pass
    assert value(metrics, 'multus_cni_seconds_count{command="ADD",outcome="ok"}') == 1
    assert value(metrics, 'multus_cni_seconds_count{command="other",outcome="ok"}') == 2


def test_requests_are_counted_by_code() -> None:
    metrics = Metrics()
    for status in (200, 200, 403, 0):
        metrics.requested(get_pod("default", "web"), status)
    for code, count in (("200", 2), ("403", 1), ("0", 1)):
        assert value(metrics, f'multus_api_requests_total{{code="{code}",resource="pods",verb="get"}}') == count


def test_the_queue_is_asked_when_it_is_read() -> None:
    metrics, waiting = Metrics(), [1, 2]
    metrics.watch_queue(lambda: len(waiting))
    assert value(metrics, "multus_delegates_waiting") == 2
    waiting.clear()
    assert value(metrics, "multus_delegates_waiting") == 0


def test_devices_are_counted_by_pool_and_those_of_a_pool_that_is_gone_are_not() -> None:
    def pool(resource: str) -> PoolStatistics:
        return PoolStatistics(
            resource=resource,
            devices=8,
            healthy=7,
            allocated=3,
            used=4,
            free=2,
            followed=True,
            rivalled=False,
            counts=Counts(allocations=3, registration_failures=1),
        )

    metrics, pools = Metrics(), [pool("intel.com/a"), pool("intel.com/b")]
    numbers = {"physical_functions": 2, "virtual_functions": 16, "events": 9, "refreshes": 5}
    metrics.watch_devices(lambda: Statistics(pools=tuple(pools), **numbers, reloads=3, refused_configs=1))
    for state, count in (("all", 8), ("healthy", 7), ("allocated", 3), ("used", 4), ("free", 2)):
        assert value(metrics, f'multus_devices{{pool="intel.com/a",state="{state}"}}') == count
    for action, count in (("allocations", 3), ("refusals", 0), ("registration_failures", 1)):
        assert value(metrics, f'multus_pool_actions_total{{action="{action}",pool="intel.com/a"}}') == count
    for name, number in (
        ('multus_pool_followed{pool="intel.com/b"}', 1),
        ('multus_pool_rivalled{pool="intel.com/b"}', 0),
        ("multus_physical_functions", 2),
        ("multus_virtual_functions", 16),
        ("multus_device_events_total", 9),
        ("multus_device_refreshes_total", 5),
        ("multus_pool_reloads_total", 3),
        ("multus_pool_refused_configs_total", 1),
    ):
        assert value(metrics, name) == number
    pools.pop(0)
    assert b"intel.com/a" not in metrics.text()


async def test_a_scrape_counts_the_journal() -> None:
    held = [sandbox("a", State.ATTACHED), sandbox("b", State.ATTACHED), sandbox("c", State.DELETING, failures=3)]

    async def journal() -> list[Sandbox]:
        return held

    async with served(Metrics(), journal) as port:
        first = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
        held.pop(0)
        second = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert first.startswith(b"HTTP/1.1 200 ")
    assert b'multus_journal_sandboxes{state="attached"} 2.0' in first
    assert b'multus_journal_sandboxes{state="deleting"} 1.0' in first
    assert b'multus_journal_sandboxes{state="adding"} 0.0' in first
    assert b"multus_journal_failing 1.0" in first
    assert b'multus_journal_sandboxes{state="attached"} 1.0' in second


async def test_a_journal_that_cannot_be_read_takes_nothing_else_away() -> None:
    async def journal() -> list[Sandbox]:
        raise JournalError("disk")

    async with served(Metrics(), journal) as port:
        answer = await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"multus_build_info" in answer


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"404"),
        (b"GET /metrics?x=1 HTTP/1.1\r\nHost: x\r\n\r\n", b"200"),
        (b"POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n", b"405"),
    ],
)
async def test_only_metrics_are_served(request_: bytes, status: bytes) -> None:
    async with served(Metrics(), nothing) as port:
        assert (await ask(port, request_)).split(b" ")[1] == status


@pytest.mark.parametrize("rubbish", [b"\x16\x03\x01\x02\x00\x01\x00", b"GET\r\n\r\n", b"A" * 40_000, b"\r\n\r\n"])
async def test_rubbish_harms_nobody(rubbish: bytes) -> None:
    async with served(Metrics(), nothing) as port:
        async with await anyio.connect_tcp("127.0.0.1", port) as stream:
            await stream.send(rubbish)
        assert b" 200 " in await ask(port, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")


@pytest.mark.parametrize("host", ["localhost", "", "1.2.3", "192.0.2.1", "a\0b"])
async def test_what_is_no_address_of_this_node_is_said(host: str) -> None:
    with pytest.raises(MetricsError, match="metricsBind"):
        async with listening(host, 0):
            pass


async def test_a_port_that_is_taken_is_said() -> None:
    async with listening("127.0.0.1", 0) as listener:
        port = int(listener.extra(anyio.abc.SocketAttribute.local_port))
        with pytest.raises(MetricsError, match=f"port {port}"):
            async with listening("127.0.0.1", port):
                pass


async def test_phases_are_counted_by_command() -> None:
    metrics = Metrics()
    metrics.phase("ADD", "journal", 0.003)
    metrics.phase("ADD", "journal", 0.001)
    metrics.phase("DEL", "journal", 0.1)
    assert value(metrics, 'multus_phase_seconds_count{command="ADD",phase="journal"}') == 2
    assert value(metrics, 'multus_phase_seconds_sum{command="ADD",phase="journal"}') == pytest.approx(0.004)
    assert value(metrics, 'multus_phase_seconds_count{command="DEL",phase="journal"}') == 1
