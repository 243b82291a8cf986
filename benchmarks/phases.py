"""Where an attach's time goes, by the daemon's own timelines of the very calls that were measured."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from benchmarks.side import Batch, Side
from multus.cli import output
from multus.cli.box import Sandbox
from multus.cli.runtime import container_id
from multus.cli.timeline import kept
from multus.timeline import Timeline

_KEPT: Final = 64  # calls that a daemon keeps
_OWN: Final = ("queue", "journal", "resolve", "plan", "sandbox", "routes", "status")
_COLUMNS: Final = ("outside", *_OWN, "networks", "other")


class Shares(msgspec.Struct, frozen=True, kw_only=True):
    """Medians in milliseconds of a command's calls at a point, by phase.

    "outside" is the plugin binary and the socket, "networks" the stretch from the first network's begin to the last
    one's end, "other" what no phase names. `plugins` has each plugin's own span, by type, "ipam" those within.
    """

    command: str
    networks: int
    at_a_time: int
    calls: int
    phases: dict[str, float]
    plugins: dict[str, float]


def collect(side: Side, command: str, sandboxes: Sequence[Sandbox], batch: Batch) -> list[dict[str, float]]:
    """The phases of a batch's calls, in seconds; of as many as the daemon still keeps."""
    wanted = {container_id(sandbox.pod): seconds for sandbox, seconds in zip(sandboxes, batch.calls, strict=True)}
    found = [
        split(each, wanted[each.container_id])
        for each in kept(side.box.socket_dir / "multus.sock")
        if each.command == command and each.container_id in wanted
    ]
    if len(found) < min(len(wanted), _KEPT):
        raise RuntimeError(f"{side.name}: {len(found)} timelines of {len(wanted)} calls")
    return found


def shares(command: str, calls: Sequence[Mapping[str, float]], *, networks: int, at_a_time: int) -> Shares:
    """The medians of calls."""
    names = sorted({name for call in calls for name in call})
    medians = {name: statistics.median(call.get(name, 0.0) for call in calls) * 1000 for name in names}
    return Shares(
        command=command,
        networks=networks,
        at_a_time=at_a_time,
        calls=len(calls),
        phases={name: medians.get(name, 0.0) for name in _COLUMNS},
        plugins={name: value for name, value in medians.items() if name not in _COLUMNS},
    )


def print_shares(found: Sequence[Shares]) -> None:
    """A table of where the time goes, and one of the plugins."""
    output.heading("Where the time goes: medians in ms of each phase of our calls, from the daemon's timelines")
    lines = [
        (str(each.networks), str(each.at_a_time), each.command, *(f"{each.phases[name]:.2f}" for name in _COLUMNS))
        for each in found
    ]
    output.table(("NETWORKS", "AT A TIME", "", *(name.upper() for name in _COLUMNS)), lines)
    types = sorted({name for each in found for name in each.plugins})
    output.heading("One plugin's part of a network: medians in ms of each call's mean")
    output.table(
        ("NETWORKS", "AT A TIME", "", *types),
        [
            (
                str(each.networks),
                str(each.at_a_time),
                each.command,
                *(f"{each.plugins[name]:.2f}" if name in each.plugins else "-" for name in types),
            )
            for each in found
        ],
    )


def split(timeline: Timeline, waited: float) -> dict[str, float]:
    """One call's phases; `waited` is what its caller saw."""
    found = dict.fromkeys(_COLUMNS, 0.0)
    within: dict[str, list[float]] = {}
    stretches = []
    for span in timeline.spans:
        took = span.end - span.begin
        if not span.ifname:
            found[span.phase] = found.get(span.phase, 0.0) + took
        elif span.phase in ("network", "removal"):
            stretches.append(span)
        elif span.phase in ("plugin", "ipam"):
            within.setdefault(span.what if span.phase == "plugin" else f"ipam {span.what}", []).append(took)
    if stretches:
        found["networks"] = max(span.end for span in stretches) - min(span.begin for span in stretches)
    found["outside"] = max(waited - timeline.seconds, 0.0)
    named = sum(value for name, value in found.items() if name != "outside")
    found["other"] = max(timeline.seconds - named, 0.0)
    return {**found, **{name: statistics.mean(each) for name, each in within.items()}}
