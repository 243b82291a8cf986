"""What changes of the hardware, as it changes: which PCI devices to look at again.

No source of events is enough, so all are heard. An event is a hint, not a fact: hearing of one change twice costs a
look and nothing else. And where none comes, changes are found by looking.
"""

import logging
import os
import select
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import anyio

from devices.linux.event_sources import (
    NODE,
    RESCAN,
    SUBSYSTEMS,
    Change,
    KernelSource,
    LinkSource,
    Source,
    UdevSource,
    address_in,
    change_of,
    parse_uevent,
)

__all__ = [
    "NODE",
    "RESCAN",
    "Change",
    "KernelSource",
    "LinkSource",
    "Source",
    "UdevSource",
    "Uevents",
    "change_of",
    "fingerprint",
    "parse_uevent",
]

log = logging.getLogger(__name__)

CHECK_EVERY: Final = 5.0
"""Seconds between two looks for changes that no event told of."""
CHECK_WHEN_SILENT: Final = 0.5
"""The same once there was such a change: until an event comes, this is how changes are seen within a second."""


class Uevents:
    """An asynchronous iterator of changes, and the context in which its sources are open.

    What waits in the sources at one moment is told once per device, so a burst of events for one costs one look.
    """

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        *,
        sources: Sequence[Callable[[], Source]] | None = None,
        check_every: float = CHECK_EVERY,
        check_when_silent: float = CHECK_WHEN_SILENT,
    ) -> None:
        self._sysfs = sysfs
        self._opening = (KernelSource, UdevSource, lambda: LinkSource(sysfs)) if sources is None else tuple(sources)
        self._intervals = (check_every, check_when_silent)
        self._sources: dict[int, Source] = {}
        self._waiting: list[Change] = []
        self._silent = False
        self._heard = False
        self._seen: object = None
        self._due = 0.0

    async def __aenter__(self) -> Self:
        self._poll = select.epoll()
        for opening in self._opening:
            try:
                source = opening()
            except (OSError, ImportError) as error:
                log.warning("no events from %s: %s", getattr(opening, "__name__", "link netlink"), error)
                continue
            self._sources[source.fileno()] = source
            self._poll.register(source.fileno(), select.EPOLLIN)
        self._seen = await anyio.to_thread.run_sync(fingerprint, self._sysfs)
        self._due = anyio.current_time() + self._interval
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._poll.close()
        for source in self._sources.values():
            source.close()
        self._sources.clear()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Change:
        while not self._waiting:
            self._waiting = list(dict.fromkeys(await self._gather()))
        return self._waiting.pop(0)

    @property
    def silent(self) -> bool:
        """Whether the last change was seen by looking, and not by an event."""
        return self._silent

    @property
    def _interval(self) -> float:
        return self._intervals[self._silent]

    async def _gather(self) -> list[Change]:
        with anyio.move_on_at(self._due):
            await anyio.wait_readable(self._poll.fileno())
        if anyio.current_time() >= self._due:
            return [*self._drain(), *await self._check()]
        return self._drain()

    def _drain(self) -> list[Change]:
        found: list[Change] = []
        for descriptor, _ in self._poll.poll(0):
            found += self._sources[descriptor].drain()
        if any(change.subsystem in SUBSYSTEMS for change in found):
            self._heard, self._silent = True, False
        return found

    async def _check(self) -> list[Change]:
        """Look whether something changed since the last time; if so, have everything looked at."""
        now = await anyio.to_thread.run_sync(fingerprint, self._sysfs)
        changed, self._seen = now != self._seen, now
        if changed and not self._heard:
            log.warning("devices changed without an event: looking every %.1f s", self._intervals[1])
            self._silent = True
        self._heard = False
        self._due = anyio.current_time() + self._interval
        return [RESCAN] if changed else []


def fingerprint(sysfs: Path) -> tuple[frozenset[tuple[str, str]], frozenset[str]]:
    """Which PCI devices there are, with their drivers, and which interfaces of devices: equal when that is unchanged.

    Some 3 us a device, where reading them in full takes 80.
    """
    devices, interfaces = sysfs / "bus/pci/devices", sysfs / "class/net"
    return (
        frozenset((name, _target(f"{devices}/{name}/driver")) for name in _names(devices)),
        frozenset(name for name in _names(interfaces) if address_in(_target(f"{interfaces}/{name}"))),
    )


def _target(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115
    except OSError:
        return ""


def _names(directory: Path) -> list[str]:
    try:
        return os.listdir(directory)  # noqa: PTH208
    except OSError:
        return []
