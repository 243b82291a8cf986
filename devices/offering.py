"""Pools as they are offered: each with its devices at this moment, to the kubelet where there is one."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from devices.giving import Giver
from devices.kubelet.allocate import Device, Grant
from devices.offers import Offer
from devices.statistics import PoolStatistics, of_pool

if TYPE_CHECKING:
    from devices.kubelet.registration import Kubelet

logger = logging.getLogger(__name__)


class Offering:
    """Offers what `giver` has; `kubelet` is None on a node without one."""

    def __init__(self, giver: Giver, kubelet: "Kubelet | None") -> None:
        self._giver = giver
        self._kubelet = kubelet
        self._offers: dict[str, Offer] = {}

    async def follow(self) -> None:
        """Offer the pools that there are now, and no others."""
        wanted = {pool.resource for pool in self._giver.config.pools}
        for resource in self._offers.keys() - wanted:
            del self._offers[resource]
            if self._kubelet is not None:
                await self._kubelet.withdraw(resource)
        fresh = sorted(wanted - self._offers.keys())
        for resource in fresh:
            self._offers[resource] = Offer(resource, self._granting(resource))
        self.publish()
        if self._kubelet is not None:
            for resource in fresh:  # now that they have something to say
                self._kubelet.serve(self._offers[resource])

    def publish(self) -> None:
        """Offer the devices as they are now."""
        for pool in self._giver.config.pools:
            offer = self._offers.get(pool.resource)
            if offer is not None:
                offer.preference = pool.preferred
                before = offer.devices
                if offer.update(self._giver.devices(pool)):
                    _tell(pool.resource, before, offer.devices)

    def statistics(self) -> tuple[PoolStatistics, ...]:
        """Each pool in numbers."""
        given, used = self._giver.ledger.holders, self._giver.used
        services = self._kubelet.services if self._kubelet is not None else {}
        return tuple(
            of_pool(
                offer,
                given=given,
                used=used,
                followed=resource in services and services[resource].connected,
                rivalled=resource in services and services[resource].rival is not None,
            )
            for resource, offer in sorted(self._offers.items())
        )

    def _granting(self, resource: str) -> Callable[[Sequence[str]], Awaitable[Sequence[Grant]]]:
        async def give(ids: Sequence[str]) -> Sequence[Grant]:
            return await self._giver.grant(resource, ids)

        return give


def _tell(resource: str, before: Mapping[str, Device], now: Mapping[str, Device]) -> None:
    if before.keys() != now.keys():
        logger.info("%s: %d devices", resource, len(now))
    for bdf, device in now.items():
        was = before.get(bdf)
        if device.reason != (was.reason if was else ""):
            logger.info("%s: %s: %s", resource, bdf, device.reason or "is well again")
