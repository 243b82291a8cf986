"""Pools as they are offered: each with its devices at this moment, to the kubelet where there is one."""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from devices.giving import Giver
from devices.inventory import VF
from devices.kubelet.allocate import Device, Grant
from devices.offers import Offer, describe
from devices.pool_config import Pool, PoolConfig
from devices.pools import Member
from devices.statistics import PoolStatistics, of_pool

if TYPE_CHECKING:
    from devices.kubelet.registration import Kubelet

logger = logging.getLogger(__name__)


class Offering:
    """Offers what `giver` has; `kubelet` is None on a node without one. `given` is told what a kubelet is given."""

    def __init__(
        self, giver: Giver, kubelet: "Kubelet | None", *, given: Callable[[str, Iterable[str]], None] | None = None
    ) -> None:
        self._giver = giver
        self._kubelet = kubelet
        self._given = given
        self._offers: dict[str, Offer] = {}
        self._config: PoolConfig | None = None  # what is offered in full
        self._pools: dict[str, Pool] = {}
        self._where: dict[str, str] = {}  # what is offered, and of which resource
        self._holders: Mapping[str, str] = {}
        self._withheld: dict[str, str] = {}

    async def follow(self, moved: Iterable[str]) -> None:
        """Offer the pools that there are now and no others; with the same ones as before, only `moved` is looked at."""
        config = self._giver.config
        if config is self._config:
            self.publish(moved)
            return
        self._config = None
        self._pools = {pool.resource: pool for pool in config.pools}
        wanted = self._pools.keys()
        for resource in self._offers.keys() - wanted:
            del self._offers[resource]
            if self._kubelet is not None:
                await self._kubelet.withdraw(resource)
        fresh = sorted(wanted - self._offers.keys())
        for resource in fresh:
            self._offers[resource] = Offer(resource, self._granting(resource))
        self._publish_all()
        if self._kubelet is not None:
            for resource in fresh:  # now that they have something to say
                self._kubelet.serve(self._offers[resource])
        self._config = config

    def publish(self, devices: Iterable[str]) -> None:
        """Offer these devices as they are now."""
        changes: dict[str, dict[str, Device | None]] = {}
        for bdf in devices:
            was, member = self._where.pop(bdf, ""), self._giver.pools.by_bdf.get(bdf)
            if was and (member is None or member.resource != was):
                changes.setdefault(was, {})[bdf] = None
            if member is not None and member.resource in self._offers:
                self._where[bdf] = member.resource
                changes.setdefault(member.resource, {})[bdf] = self._described(member)
        for resource, each in changes.items():
            offer = self._offers.get(resource)
            if offer is not None:
                before = offer.devices
                if offer.change(each):
                    _tell(resource, before, offer.devices, each)

    def publish_holders(self) -> None:
        """Offer those devices as they are now that have another holder."""
        before, self._holders = self._holders, self._giver.ledger.holders
        self.publish({bdf for bdf, _ in before.items() ^ self._holders.items()})

    def withhold(self, parents: Collection[str], reason: str) -> None:
        """Offer the devices of these PFs as not well for that reason; "" ends it."""
        for pf in parents:
            if reason:
                self._withheld[pf] = reason
            else:
                self._withheld.pop(pf, None)
        self.publish([bdf for bdf, member in self._giver.pools.by_bdf.items() if _parent(member) in parents])

    def _publish_all(self) -> None:
        self._holders = self._giver.ledger.holders
        self._where = {bdf: member.resource for bdf, member in self._giver.pools.by_bdf.items()}
        for resource, pool in self._pools.items():
            offer = self._offers[resource]
            offer.preference = pool.preferred
            before = offer.devices
            if offer.update(map(self._described, self._giver.pools.members.get(resource, ()))):
                _tell(resource, before, offer.devices, offer.devices)

    def _described(self, member: Member) -> Device:
        return describe(
            member,
            self._pools[member.resource],
            holder=self._holders.get(member.device.bdf, ""),
            withheld=self._withheld.get(_parent(member), ""),
        )

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
            if self._given is not None:
                self._given(resource, ids)
            return await self._giver.grant(resource, ids)

        return give


def _parent(member: Member) -> str:
    device = member.device
    return device.pf if isinstance(device, VF) else device.bdf


def _tell(resource: str, before: Mapping[str, Device], now: Mapping[str, Device], changed: Iterable[str]) -> None:
    if before.keys() != now.keys():
        logger.info("%s: %d devices", resource, len(now))
    for bdf in changed:
        was, device = before.get(bdf), now.get(bdf)
        if device is not None and device.reason != (was.reason if was else ""):
            logger.info("%s: %s: %s", resource, bdf, device.reason or "is well again")
