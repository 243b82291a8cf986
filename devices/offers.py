"""What a pool offers at this moment, for whoever follows it: a kubelet, or nobody."""

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from typing import Final

import anyio
import msgspec

from devices.kubelet.allocate import Device, Grant, Preference

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
        new: dict[str, Device] = {}
        for device in sorted(devices, key=lambda device: device.id):
            if len(device.id) <= _LONGEST_ID:
                new[device.id] = device
        if new == self._devices:
            return False
        self._devices = new
        self.changed.ring()
        return True
