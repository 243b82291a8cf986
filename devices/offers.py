"""What a pool offers at this moment, for whoever follows it: a kubelet, or nobody."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

import anyio
import msgspec

from devices.inventory import VF
from devices.kubelet.allocate import Device, Grant, Preference
from devices.pool_config import Pool
from devices.pools import Member

Give = Callable[[Sequence[str]], Awaitable[Sequence[Grant]]]
"""Makes devices ready for a container. Raises DeviceError when one is not there or is not this pool's."""

_LONGEST_ID: Final = 63  # characters, as the kubelet has it


class Bell:
    """Wakes everybody who waits; nobody misses a ring that came after he last looked."""

    def __init__(self) -> None:
        self.rung = 0
        self._event = anyio.Event()

    def ring(self) -> None:
        """Something has changed."""
        self.rung += 1
        self._event.set()
        self._event = anyio.Event()

    async def wait(self, seen: int) -> None:
        """Return once it has rung more often than `seen`."""
        while self.rung <= seen:
            await self._event.wait()


class Counts(msgspec.Struct, kw_only=True):
    """What a pool has done so far, for metrics."""

    allocations: int = 0
    refusals: int = 0
    updates: int = 0
    registrations: int = 0
    registration_failures: int = 0


class Offer:
    """The devices that a pool has to offer at this moment. `give` makes those ready that a container was given."""

    def __init__(self, resource: str, give: Give, *, preference: Preference = "spread") -> None:
        self.resource = resource
        self.preference: Preference = preference
        self.counts = Counts()
        self.changed = Bell()
        self.give = give
        self._devices: dict[str, Device] = {}

    @property
    def devices(self) -> Mapping[str, Device]:
        """By id, sorted."""
        return self._devices

    def update(self, devices: Iterable[Device]) -> bool:
        """Offer these from now on; whether anything of it is new. Those with an id that no kubelet takes stay out."""
        new = {device.id: device for device in sorted(devices, key=attrgetter("id")) if len(device.id) <= _LONGEST_ID}
        if new == self._devices:
            return False
        self._devices = new
        self.changed.ring()
        return True

    def change(self, changes: Mapping[str, Device | None]) -> bool:
        """Offer these as they are now, None not any more, and the others as they were; as `update`."""
        told = {id_: device for id_, device in changes.items() if len(id_) <= _LONGEST_ID}
        if all(self._devices.get(id_) == device for id_, device in told.items()):
            return False
        gone = {id_ for id_, device in told.items() if device is None}
        mixed = {**self._devices, **{id_: device for id_, device in told.items() if device is not None}}
        for id_ in gone:
            mixed.pop(id_, None)
        if not told.keys() - gone <= self._devices.keys():
            ids = sorted(mixed)
            mixed = dict(zip(ids, map(mixed.__getitem__, ids), strict=True))
        self._devices = mixed
        self.changed.ring()
        return True


def describe(member: Member, pool: Pool, *, holder: str = "", withheld: str = "") -> Device:
    """A member of a pool as the pool offers it; `holder` has it, and `withheld` is why it is not given out for now."""
    device = member.device
    reason = member.reason or (f"{holder} has it" if holder else withheld)
    return Device(
        id=device.bdf,
        healthy=not reason,
        reason=reason,
        numa=-1 if pool.exclude_topology else device.numa,
        parent=device.pf if isinstance(device, VF) else device.bdf,
    )
