"""Attach latency: pods with 1 to 8 networks, 1 or 16 at a time, beside the plugins' own time, interleaved."""

import statistics
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import bare
from multus.cli.box import DEFAULT_NETWORK, Box, Sandbox, plugin_dir

NETWORKS = "k8s.v1.cni.cncf.io/networks"


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One point: milliseconds a pod, median and 99th percentile, of ADD and DEL; and of the binaries alone.

    `networks` counts eth0 too. `pods_per_second` is of ADDs. `ours` is what is above the binaries, of the median.
    """

    networks: int
    at_a_time: int
    pods: int
    add_ms: float
    add_p99_ms: float
    del_ms: float
    bare_add_ms: float
    bare_del_ms: float
    pods_per_second: float

    @property
    def ratio(self) -> float:
        """ADD through everything, over the binaries run by hand one after another."""
        return self.add_ms / self.bare_add_ms


def secondary(number: int) -> dict[str, Any]:
    """macvlan with host-local addresses, as in the walk-through, a network each."""
    return {
        "cniVersion": "1.0.0",
        "name": f"n{number}",
        "type": "macvlan",
        "master": "eth0",
        "mode": "bridge",
        "ipam": {"type": "host-local", "ranges": [[{"subnet": f"10.{100 + number}.0.0/16"}]]},
    }


def measure(box: Box, *, networks: int, at_a_time: int, pods: int) -> Row:
    """One point. Every pod's interfaces are counted and its DEL must leave nothing, or there is no figure."""
    chosen = [secondary(number) for number in range(1, networks)]
    names = ",".join(network["name"] for network in chosen)
    adds: list[float] = []
    dels: list[float] = []
    bare_adds: list[float] = []
    bare_dels: list[float] = []
    spent = 0.0
    for first in range(0, pods, at_a_time):
        count = min(at_a_time, pods - first)
        batch = [
            box.pod(f"p{networks}-{at_a_time}-{first + each}", annotations={NETWORKS: names}) for each in range(count)
        ]
        spent += _together(batch, lambda sandbox: adds.append(box.cni("ADD", sandbox).seconds))
        for sandbox in batch:
            _check(sandbox, networks)
        _together(batch, lambda sandbox: dels.append(box.cni("DEL", sandbox).seconds))
        sandbox = batch[0]
        everything = [{**DEFAULT_NETWORK}, *chosen]
        bare_adds.append(bare.run(box, "ADD", sandbox, everything, plugins=plugin_dir()))
        _check(sandbox, networks)
        bare_dels.append(bare.run(box, "DEL", sandbox, everything, plugins=plugin_dir()))
        for each in batch:
            box.remove(each.pod.name)
    left = box.leftovers()
    if left:
        raise RuntimeError(f"left over: {left}")
    return Row(
        networks=networks,
        at_a_time=at_a_time,
        pods=pods,
        add_ms=_median(adds),
        add_p99_ms=sorted(adds)[int(len(adds) * 0.99)] * 1000,
        del_ms=_median(dels),
        bare_add_ms=_median(bare_adds),
        bare_del_ms=_median(bare_dels),
        pods_per_second=pods / spent,
    )


def memory(box: Box) -> float:
    """The daemon's resident memory in MiB."""
    assert box.daemon is not None
    for line in Path(f"/proc/{box.daemon.pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _check(sandbox: Sandbox, networks: int) -> None:
    links = sandbox.run("ip", "-brief", "-4", "address").splitlines()
    with_address = [line for line in links if len(line.split()) > 2 and not line.startswith("lo ")]
    if len(with_address) != networks:
        raise RuntimeError(
            f"{sandbox.pod.name}: {len(with_address)} interfaces with addresses, {networks} wanted: {links}"
        )


def _together(batch: Sequence[Sandbox], call: Callable[[Sandbox], object]) -> float:
    """Seconds until the last is done."""
    failures: list[Exception] = []

    def each(sandbox: Sandbox) -> None:
        try:
            call(sandbox)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=each, args=(sandbox,)) for sandbox in batch]
    begin = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    return time.perf_counter() - begin


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) * 1000
