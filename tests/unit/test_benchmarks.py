"""The benchmarks' own arithmetic: what they say of what they measured."""

from collections.abc import Sequence
from xml.etree import ElementTree

import pytest

from benchmarks.bars import judge
from benchmarks.compare import measure
from benchmarks.curves import Point, flat, slopes
from benchmarks.endurance import Sample, judge_samples
from benchmarks.phases import split
from benchmarks.plot import Panel, draw, page
from benchmarks.rows import Memory, Row, make_row, print_machine, print_rows
from benchmarks.side import Batch, CallsFailedError
from multus.cli.box import Sandbox
from multus.timeline import Span, Timeline


def row(side: str, networks: int, at_a_time: int = 1, **changed: float) -> Row:
    adds = [Batch(calls=[0.010, 0.030], spent=0.050, own_cpu=0.002, daemon_cpu=0.006, shim_cpu=0.002, caller_cpu=0.001)]
    dels = [
        Batch(
            calls=[0.020, 0.020],
            spent=0.080,
            daemon_cpu=0.002,
            shim_cpu=0.002,
            server_cpu=0.026,
            requests={"patch pods": 2},
        )
    ]
    made = make_row(side, adds, dels, networks=networks, at_a_time=at_a_time)
    return Row(**{**{name: getattr(made, name) for name in made.__struct_fields__}, **changed})


def test_a_row_is_per_pod() -> None:
    made = row("ours", 2)
    assert made.pods == 2
    assert made.per_attach == 1
    assert [made.add_ms, made.del_ms] == pytest.approx([20, 20])
    assert [made.adds_per_second, made.dels_per_second] == pytest.approx([40, 25])
    assert [made.own_ms, made.cpu_ms, made.all_cpu_ms, made.caller_ms] == pytest.approx([1, 4, 6, 0.5])


def test_who_took_the_machine_is_told_of_bursts(capsys: pytest.CaptureFixture[str]) -> None:
    burst = row("ours", 2, 64)
    assert burst.busy == pytest.approx(
        {"daemon": 2 / 130, "plugins": 6 / 130, "shim": 4 / 130, "server": 0.2, "caller": 1 / 130}
    )
    print_machine([row("thick", 2, 1)])
    assert capsys.readouterr().out == ""
    print_machine([row("thick", 2, 1), burst])
    _, _, header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["NETWORKS", "AT", "A", "TIME", "SIDE", "DAEMON", "PLUGINS", "SHIM", "SERVER", "CALLER"]
    assert [line.split() for line in lines] == [["2", "64", "ours", "0.02", "0.05", "0.03", "0.20", "0.01"]]


def test_the_callers_own_cpu_is_in_the_table_but_of_a_limit(capsys: pytest.CaptureFixture[str]) -> None:
    print_rows([row("ours", 2), row("kernel", 2)], header=True)
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.endswith("CALLER   REQUESTS")
    assert [line.split()[-3:] for line in lines] == [["6.0", "0.50", "1.00"], ["6.0", "-", "-"]]


def test_bars_are_ratios_to_the_thick_daemon_at_the_same_point() -> None:
    rows = [row("ours", 1), row("thick", 1, add_ms=50.0, cpu_ms=8.0), row("thin", 1, add_ms=1.0), row("ours", 8)]
    found = {bar.what: (bar.found, bar.passed) for bar in judge(rows, [])}
    assert found == {
        "ADD p50, 1 network": ("0.40", True),
        "CPU of ADD and DEL, 1 networks, 1 at a time": ("0.60", False),
        "API requests an attach": ("1.00 and 0.00", True),
    }
    held = [
        Memory(side="ours", idle_mib=1, end_mib=81, attaches=500),
        Memory(side="thick", idle_mib=1, end_mib=99, attaches=5),
    ]
    assert [(bar.what, bar.passed) for bar in judge(rows, held)][-1] == ("MiB resident after 500 attaches", False)


def test_the_parts_of_a_call_add_up_to_what_its_caller_waited() -> None:
    timeline = Timeline(
        command="ADD", container_id="c", ifname="eth0", pod="", began=0.0, seconds=0.050, outcome="ok",
        spans=(
            Span(phase="queue", begin=0.0, end=0.001),
            Span(phase="journal", begin=0.001, end=0.003),
            Span(phase="network", what="a", ifname="eth0", begin=0.004, end=0.020),
            Span(phase="after", ifname="net1", begin=0.004, end=0.020),
            Span(phase="network", what="b", ifname="net1", begin=0.020, end=0.040),
            Span(phase="plugin", what="macvlan", ifname="net1", begin=0.020, end=0.040),
            Span(phase="ipam", what="host-local", ifname="net1", begin=0.025, end=0.030),
            Span(phase="journal", begin=0.040, end=0.046),
        ),
    )  # fmt: skip
    parts = split(timeline, 0.055)
    plugins = {name: parts.pop(name) for name in ("macvlan", "ipam host-local")}
    assert plugins == {"macvlan": pytest.approx(0.020), "ipam host-local": pytest.approx(0.005)}
    assert {name: round(value, 6) for name, value in parts.items() if value} == {
        "outside": 0.005,
        "queue": 0.001,
        "journal": 0.008,
        "networks": 0.036,
        "other": 0.005,
    }
    assert sum(parts.values()) == pytest.approx(0.055)


def test_one_more_network_is_held_to_one_more_of_fewer() -> None:
    counts = (0, 1, 2, 8, 16, 24, 32)
    points = [Point(count=count, add_ms=10 + 2 * count, del_ms=10 + count * count / 10) for count in counts]
    assert [(bar.found, bar.passed) for bar in slopes(points)] == [("1.00", True), ("2.00", False)]
    assert slopes(points[:2]) == []


def test_many_are_held_to_the_node_with_few_of_the_same_turns() -> None:
    points = [
        Point(count=100, add_ms=99, del_ms=99, few_add_ms=1, few_del_ms=1),
        Point(count=1000, add_ms=10.9, del_ms=11.1, few_add_ms=10, few_del_ms=10),
    ]
    assert [(bar.found, bar.passed) for bar in flat("NADs", points)] == [("+9.0%", True), ("+11.0%", False)]


def test_the_end_of_a_long_run_is_held_to_its_begin() -> None:
    samples = [
        Sample(attaches=number * 125, mib=50 + number / 10, descriptors=30, add_ms=10, del_ms=10 if number < 36 else 12)
        for number in range(1, 41)
    ]
    found = [(bar.found, bar.passed) for bar in judge_samples(samples)]
    assert found == [("+3.0", False), ("+0", True), ("1.00", True), ("1.20", False)]
    assert judge_samples(samples[:5]) == []


def test_plots_are_documents() -> None:
    for text in (
        draw([row("ours", 0), row("thick", 4), row("ours", 4, 64), row("kernel", 0)]),
        page(
            [Panel(title="a < b", across="n", lines={"x": [(10, 1.0), (10_000, 3.0)], "y & z": []}, logarithmic=True)]
        ),
        page([Panel(title="one", across="n", lines={"x": [(0, 0.5)]})]),
    ):
        drawn = ElementTree.fromstring(text)
        assert drawn.findall(".//{http://www.w3.org/2000/svg}polyline")


class Someone:
    """A contender whose calls take what they are told to, or fail."""

    def __init__(self, name: str, *, fails: bool = False) -> None:
        self.name = name
        self.fails = fails
        self.did: list[str] = []

    def pods(self, count: int, networks: Sequence[str]) -> list[Sandbox]:
        self.did.append(f"{count} pods")
        return []

    def call(self, command: str, sandboxes: Sequence[Sandbox], *, at_a_time: int) -> Batch:
        self.did.append(command)
        if self.fails:
            raise CallsFailedError("3 of 4 failed")
        return Batch(calls=[0.01], spent=0.01, shim_cpu=0.0)

    def check(self, sandbox: Sandbox, secondaries: int) -> None:
        """No pod, nothing to see."""

    def remove(self, sandboxes: Sequence[Sandbox]) -> None:
        self.did.append("remove")

    def clean(self) -> None:
        self.did.append("clean")


def test_one_of_upstream_s_that_fails_has_no_row_and_stops_nobody() -> None:
    kernel, thin, gave_up = Someone("kernel"), Someone("thin", fails=True), dict[str, str]()
    rows, _ = measure([kernel, thin], gave_up, networks=2, at_a_time=4, pods=8)
    assert [each.side for each in rows] == ["kernel"]
    assert gave_up == {"thin": "2 networks, 4 at a time: 3 of 4 failed"}
    assert thin.did == ["8 pods", "ADD"]
    assert kernel.did == ["8 pods", "ADD", "DEL", "remove", "clean"]


def test_one_of_ours_that_fails_ends_the_run() -> None:
    with pytest.raises(CallsFailedError):
        measure([Someone("programs", fails=True)], {}, networks=0, at_a_time=1, pods=4)
