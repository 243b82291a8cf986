"""Thousands of attaches by one daemon: its memory, its descriptors and what a call takes, all along."""

import math
import statistics
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.attach import NETWORKS, memory
from benchmarks.bars import Bar
from benchmarks.side import Side
from devices.linux import link_changes, netns, rtnetlink
from multus.cli.box import Sandbox
from multus.kube.objects import Pod

_AT_A_TIME: Final = 16
_POOL: Final = 64  # namespaces, used again and again: making one takes longer than an attach
_SAMPLES: Final = 40
_SETTLED: Final = 500  # attaches until memory is what it stays
_GROWTH_MIB: Final = 2.0
_GROWTH: Final = 1.10  # of the medians of calls


class Sample(msgspec.Struct, frozen=True, kw_only=True):
    """After so many attaches: resident MiB, open descriptors, medians in ms of the calls since the sample before."""

    attaches: int
    mib: float
    descriptors: int
    add_ms: float
    del_ms: float


def endure(side: Side, attaches: int, *, until: float = math.inf) -> tuple[list[Sample], list[Bar]]:
    """Attach and detach pods with one network beside the default one, each checked; samples and bars.

    It ends early at `until`, by the monotonic clock, and says so.
    """
    pool = [Sandbox(Pod(namespace="default", name=f"pool{number}", uid="")) for number in range(_POOL)]
    for sandbox in pool:
        side.box.pods[sandbox.pod.name] = sandbox
    every = max(attaches // _SAMPLES, _POOL)
    adds: list[float] = []
    dels: list[float] = []
    samples: list[Sample] = []
    done, shown = 0, 0
    with ThreadPoolExecutor(_AT_A_TIME) as threads:
        while done < attaches:
            batch = pool[: min(_POOL, attaches - done)]
            for offset, sandbox in enumerate(batch):
                name = f"e{done + offset}"
                uid = side.server.ask("pod", name=name, annotations={NETWORKS: "n1"})
                sandbox.pod = Pod(namespace="default", name=name, uid=uid)
            conf = side.box.conf()
            adds += threads.map(partial(_call, side, "ADD", conf), batch)
            for sandbox in batch:
                _check(side, sandbox, ("eth0", "net1"))
            dels += threads.map(partial(_call, side, "DEL", conf), batch)
            for sandbox in batch:
                _check(side, sandbox, ())
            for sandbox in batch:
                side.server.ask("delete", name=sandbox.pod.name)
            done += len(batch)
            late = time.monotonic() > until
            if done - shown >= every or done == attaches or late:
                shown = done
                samples.append(_sample(side, done, adds, dels))
                adds, dels = [], []
            if late:
                print(f"the time is up after {done} of {attaches} attaches: see --minutes")
                break
    time.sleep(1.0)
    side.clean()
    return samples, judge_samples(samples)


def _call(side: Side, command: str, conf: bytes, sandbox: Sandbox) -> float:
    return side.box.cni(command, sandbox, conf=conf).seconds


def _check(side: Side, sandbox: Sandbox, wanted: Sequence[str]) -> None:
    """These interfaces are in the pod, each with the address that its status says, and no others."""
    found = netns.run_in(sandbox.netns, _addresses)
    if not wanted:
        if found:
            raise RuntimeError(f"{sandbox.pod.name} still has {sorted(found)} after its DEL")
        return
    status = side.server.ask("status", name=sandbox.pod.name) or []
    said = {entry["interface"]: entry["ips"] for entry in status}
    if sorted(found) != sorted(wanted) or found != said or not all(found.values()):
        raise RuntimeError(f"{sandbox.pod.name}: in the pod {found}, in its status {said}")


def _addresses() -> dict[str, list[str]]:
    """Every interface but lo, with its addresses of IPv4 without their length."""
    found = {}
    with rtnetlink.connect() as connection:
        for link in rtnetlink.links(connection):
            name = rtnetlink.text(link.attributes[rtnetlink.IFNAME])
            if name != "lo":
                index = rtnetlink.LINK.unpack(link.body)[2]
                every = link_changes.addresses(connection, index)
                found[name] = [each.partition("/")[0] for each in every if ":" not in each]
    return found


def _sample(side: Side, done: int, adds: Sequence[float], dels: Sequence[float]) -> Sample:
    assert side.box.daemon is not None
    sample = Sample(
        attaches=done,
        mib=memory(side.box),
        descriptors=sum(1 for _ in Path("/proc", str(side.box.daemon.pid), "fd").iterdir()),
        add_ms=statistics.median(adds) * 1000,
        del_ms=statistics.median(dels) * 1000,
    )
    print(
        f"{done:>6} attaches: {sample.mib:.1f} MiB, {sample.descriptors} descriptors, "
        f"ADD {sample.add_ms:.1f} ms, DEL {sample.del_ms:.1f} ms",
        flush=True,
    )
    return sample


def judge_samples(samples: Sequence[Sample]) -> list[Bar]:
    """The last fifth of the samples beside the first fifth after it settled; nothing for a short run."""
    settled = [each for each in samples if each.attaches >= _SETTLED]
    fifth = len(settled) // 5
    if not fifth:
        return []
    first, last = settled[:fifth], settled[-fifth:]

    def median(of: Sequence[Sample], name: str) -> float:
        values: list[float] = [getattr(each, name) for each in of]
        return statistics.median(values)

    span = f"{settled[0].attaches:,} to {settled[-1].attaches:,} attaches"
    growth = median(last, "mib") - median(first, "mib")
    more = median(last, "descriptors") - median(first, "descriptors")
    bars = [
        Bar(
            what=f"MiB more, {span}", wanted=f"<= {_GROWTH_MIB:g}", found=f"{growth:+.1f}", passed=growth <= _GROWTH_MIB
        ),
        Bar(what=f"descriptors more, {span}", wanted="<= 0", found=f"{more:+.0f}", passed=more <= 0),
    ]
    for command in ("add_ms", "del_ms"):
        ratio = median(last, command) / median(first, command)
        name = f"{command[:3].upper()} ms, last to first, {span}"
        bars.append(Bar(what=name, wanted=f"<= {_GROWTH:g}", found=f"{ratio:.2f}", passed=ratio <= _GROWTH))
    return bars
