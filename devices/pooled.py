"""Pools to look at and to take from: what a device manager at work and one for a single command have in common."""

from collections.abc import Mapping, Sequence

from devices.giving import Giver
from devices.inventory import Inventory
from devices.ledger import Allocation
from devices.pool_config import PoolConfig
from devices.pools import Pools


class Pooled:
    """What `giver` has."""

    def __init__(self, giver: Giver) -> None:
        self._giver = giver

    @property
    def config(self) -> PoolConfig:
        """The pools in force."""
        return self._giver.config

    @property
    def inventory(self) -> Inventory:
        """The hardware as it was last seen."""
        return self._giver.inventory

    @property
    def pools(self) -> Pools:
        """Which device is in which pool."""
        return self._giver.pools

    @property
    def allocations(self) -> tuple[Allocation, ...]:
        """What was given out here."""
        return self._giver.ledger.allocations

    async def allocate(
        self,
        resource: str,
        count: int,
        *,
        owner: str,
        wanted: Sequence[str] = (),
        more: bool = False,
        avoid: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """As `Giver.allocate`."""
        try:
            devices = await self._giver.allocate(resource, count, owner=owner, wanted=wanted, more=more, avoid=avoid)
        except BaseException:
            self._gave(resource, None)
            raise
        self._gave(resource, devices)
        return devices

    async def choose(
        self,
        resource: str,
        count: int,
        *,
        owner: str,
        wanted: Sequence[str] = (),
        avoid: Mapping[str, str] | None = None,
    ) -> tuple[str, ...]:
        """As `Giver.choose`."""
        return await self._giver.choose(resource, count, owner=owner, wanted=wanted, avoid=avoid or {})

    async def drop(self, device: str) -> str:
        """As `Giver.drop`."""
        return await self._giver.drop(device)

    def _gave(self, resource: str, devices: Sequence[str] | None) -> None:
        """These were given out; None when that failed, perhaps halfway."""
