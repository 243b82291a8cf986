"""Which devices were given out without a kubelet, and to whom: durable, so that a restart gives nothing twice."""

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import msgspec

logger = logging.getLogger(__name__)

KIND: Final = "allocation"

_ADDRESS: Final = re.compile(rb"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Store(Protocol):
    """Where records are kept, durable when a call returns."""

    async def save(self, key: str, kind: str, data: bytes) -> None: ...
    async def load(self, key: str, kind: str) -> bytes | None: ...
    async def forget(self, key: str, kind: str) -> None: ...
    async def all(self, kind: str) -> Sequence[tuple[str, bytes]]: ...


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of one resource that `owner` has; `since` in seconds of Unix time."""

    owner: str
    resource: str
    devices: tuple[str, ...]
    since: float = 0.0


class Memory:
    """A store for as long as this process runs."""

    def __init__(self) -> None:
        self._records: dict[tuple[str, str], bytes] = {}

    async def save(self, key: str, kind: str, data: bytes) -> None:
        """Keep it in place of what was there."""
        self._records[kind, key] = data

    async def load(self, key: str, kind: str) -> bytes | None:
        """What is kept there."""
        return self._records.get((kind, key))

    async def forget(self, key: str, kind: str) -> None:
        """Keep it no longer."""
        self._records.pop((kind, key), None)

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        """Everything of a kind."""
        return sorted((key, data) for (each, key), data in self._records.items() if each == kind)


class Ledger:
    """Allocations by owner and resource. Whatever a store raises comes through, and then nothing has changed."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._held: dict[tuple[str, str], Allocation] = {}

    async def load(self) -> None:
        """Read what was given out before."""
        for key, data in await self._store.all(KIND):
            found = read_allocation(key, data)
            self._held[found.owner, found.resource] = found

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """All of them."""
        return tuple(self._held.values())

    @property
    def holders(self) -> Mapping[str, str]:
        """Who has a device, by its address."""
        return {device: each.owner for each in self._held.values() for device in each.devices}

    def of(self, owner: str, resource: str) -> tuple[str, ...]:
        """The devices of that resource that `owner` has, in the order in which they were given."""
        found = self._held.get((owner, resource))
        return found.devices if found else ()

    async def give(self, owner: str, resource: str, devices: Iterable[str], *, now: float) -> None:
        """Record that `owner` has these, in place of what it had of that resource."""
        made = Allocation(owner=owner, resource=resource, devices=tuple(devices), since=now)
        await self._store.save(_key(owner, resource), KIND, msgspec.json.encode(made))
        self._held[owner, resource] = made

    async def take_back(self, owner: str) -> tuple[str, ...]:
        """`owner` has nothing any more; what it had."""
        found = [each for each in self._held.values() if each.owner == owner]
        for each in found:
            await self._store.forget(_key(owner, each.resource), KIND)
            del self._held[owner, each.resource]
        return tuple(device for each in found for device in each.devices)

    async def drop(self, device: str) -> str:
        """Nobody has that device any more; who had it, "" when nobody did."""
        for each in self._held.values():
            if device in each.devices:
                rest = [other for other in each.devices if other != device]
                if rest:
                    await self.give(each.owner, each.resource, rest, now=each.since)
                else:
                    await self._store.forget(_key(each.owner, each.resource), KIND)
                    del self._held[each.owner, each.resource]
                return each.owner
        return ""


def read_allocation(key: str, data: bytes) -> Allocation:
    """A record as it was stored. One that is damaged keeps the devices that can still be read in it, so that they are
    not given to somebody else; its key says whose they are.
    """
    try:
        return msgspec.json.decode(data, type=Allocation)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        owner, _, resource = key.rpartition(" ") if " " in key else (key, "", "")
        devices = tuple(sorted({each.decode() for each in _ADDRESS.findall(data)}))
        logger.error(
            "the record of what %r was given is damaged: %s; it keeps %s",
            key,
            error,
            ", ".join(devices) or "nothing, as no device can be read in it",
        )
        return Allocation(owner=owner, resource=resource, devices=devices)


def _key(owner: str, resource: str) -> str:
    return f"{owner} {resource}".rstrip()
