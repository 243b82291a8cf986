"""Devices are given out: to containers by the kubelet's word, or without a kubelet by ours, and then durably."""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import anyio
import anyio.to_thread

from devices import pools, portfiles, vhost
from devices.errors import DeviceError, Fault
from devices.infofiles import InfoError, write_info
from devices.inventory import VF, Inventory
from devices.kubelet.allocate import Device, Grant, preferred
from devices.ledger import Ledger
from devices.linux.nodes import read_nodes
from devices.linux.sysfs import Sysfs
from devices.offers import describe
from devices.pool_config import VFIO, Pool, PoolConfig
from devices.pools import Member, Pools

logger = logging.getLogger(__name__)

_SHOWN: Final = 8
_NOTHING: Final[Mapping[str, str]] = {}
_GIVEN: Final = 600.0  # seconds that a device counts as in use once a kubelet took it: its pod is being made

Held = Callable[[], Awaitable[Mapping[str, str]]]
"""Addresses of devices that pods use now, whoever gave them out, each with its resource ("" when that is not known).

Raises DeviceError when it cannot be told."""


class PoolError(DeviceError):
    """A pool cannot give what it is asked for. `retry` when it may be able to later."""

    fault: ClassVar[Fault] = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", retry: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.retry = retry


class Giver:
    """Gives out what `config`, `inventory` and `pools` say there is; the manager keeps these up to date."""

    def __init__(
        self,
        *,
        sysfs: Sysfs,
        info: Path,
        ledger: Ledger,
        held: Held | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.config = PoolConfig()
        self.inventory = Inventory()
        self.pools = Pools()
        self.ledger = ledger
        self._sysfs = sysfs
        self._info = info
        self._held = held
        self._clock = clock
        self._lock = anyio.Lock()
        self._given: dict[str, tuple[str, float]] = {}
        self._attached: Mapping[str, str] = {}
        self._withheld: dict[str, str] = {}
        self._without_vhost: dict[str, tuple[str, ...]] = {}  # what was said to be missing, by resource

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
        """`count` devices for an owner, durably: those that it has already, and more if it has fewer.

        With `more` it gets that many beside those that it has. `wanted` are devices that must be among them, `avoid`
        devices that must not, each with the reason.

        :raises PoolError: there are not as many, or one is not to be had.
        :raises ConfigError: there is no such pool.
        """
        async with self._lock:
            had = self.ledger.of(owner, resource)
            count += len(had) * more
            chosen = await self.choose(resource, count, owner=owner, wanted=wanted, avoid=avoid or {})
            new = [device for device in chosen if device not in had]
            if new:
                await self._prepare(self.config.pool(resource), new)
                await self.ledger.give(owner, resource, chosen, now=self._clock())
                logger.info("%s: %s gets %s", resource, owner, ", ".join(new))
            return chosen

    async def choose(
        self, resource: str, count: int, *, owner: str, wanted: Sequence[str] = (), avoid: Mapping[str, str] = _NOTHING
    ) -> tuple[str, ...]:
        """What `allocate` would give now; nothing is given.

        :raises PoolError: as there. :raises ConfigError: as there.
        """
        pool = self.config.pool(resource)
        had = self.ledger.of(owner, resource)
        if len(had) >= count and set(wanted) <= set(had):
            return had
        free = await self._free(resource) - avoid.keys()
        for device in wanted:
            if device not in free and device not in had:
                why = avoid.get(device) or self._why(device, resource)
                raise PoolError(f"{device} of {resource} is not free: {why}", retry=True)
        devices = {each.id: each for each in self.devices(pool)}
        first = list(dict.fromkeys([*had, *wanted]))
        size = max(count, len(first))
        chosen = preferred(devices, {*free, *first}, first, size, preference=pool.preferred)
        if len(chosen) < count:
            raise self._too_few(resource, count, owner, free, avoid)
        return chosen

    async def release(self, owner: str) -> tuple[str, ...]:
        """Take back what an owner has; what that was. Nothing when it has nothing."""
        async with self._lock:
            devices = await self.ledger.take_back(owner)
        if devices:
            logger.info("%s gives back %s", owner, ", ".join(devices))
        return devices

    async def drop(self, device: str) -> str:
        """Take back one device; who had it, "" when nobody did."""
        async with self._lock:
            owner = await self.ledger.drop(device)
        if owner:
            logger.info("%s gives back %s", owner, device)
        return owner

    async def grant(self, resource: str, ids: Sequence[str]) -> list[Grant]:
        """Make ready what a kubelet gives to a container.

        :raises PoolError: one of them is not there, not this pool's, or given to somebody already.
        """
        async with self._lock:
            for device in ids:
                member = self.pools.by_bdf.get(device)
                if (
                    device in self.ledger.holders
                    or member is None
                    or member.resource != resource
                    or self._withholding(member)
                ):
                    raise PoolError(f"{device} of {resource} cannot be given: {self._why(device, resource)}")
            grants = await self._prepare(self.config.pool(resource), ids)
            self._given.update(dict.fromkeys(ids, (resource, self._clock())))
            return grants

    def devices(self, pool: Pool) -> list[Device]:
        """What the pool has to offer now."""
        holders = self.ledger.holders
        members = self.pools.members.get(pool.resource, ())
        return [
            describe(member, pool, holder=holders.get(member.device.bdf, ""), withheld=self._withholding(member))
            for member in members
        ]

    async def withhold(self, parents: Collection[str], reason: str) -> None:
        """Give out nothing of these PFs; what was on its way is given when this returns. A reason "" ends it."""
        async with self._lock:
            for pf in parents:
                if reason:
                    self._withheld[pf] = reason
                else:
                    self._withheld.pop(pf, None)

    async def in_use(self) -> dict[str, str]:
        """Whatever anybody has, and of which resource: given here, attached, or on its way to a pod being made.

        The last word on what is attached stands for as long as there is no other.
        """
        try:
            if self._held is not None:
                self._attached = await self._held()
        except DeviceError as error:
            logger.warning("which devices are attached cannot be told now: %s", error)
        limit = self._clock() - _GIVEN
        self._given = {device: given for device, given in self._given.items() if given[1] > limit}
        return self.used

    @property
    def used(self) -> dict[str, str]:
        """What `in_use` said last, and what was given since."""
        coming = {device: resource for device, (resource, _) in self._given.items()}
        ours = {device: each.resource for each in self.ledger.allocations for device in each.devices}
        return {**self._attached, **coming, **ours}

    async def _free(self, resource: str) -> set[str]:
        used = await self.in_use()
        members = self.pools.members.get(resource, ())
        return {
            member.device.bdf
            for member in members
            if member.healthy and member.device.bdf not in used and not self._withholding(member)
        }

    def _too_few(
        self, resource: str, count: int, owner: str, free: Collection[str], avoid: Mapping[str, str]
    ) -> PoolError:
        members = [member.device.bdf for member in self.pools.members.get(resource, ())]
        others = [f"{bdf}: {avoid.get(bdf) or self._why(bdf, resource)}" for bdf in members if bdf not in free]
        more = f"; and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
        return PoolError(
            f"{owner} needs {count} devices of {resource}: {len(free)} of {len(members)} are free",
            hint="; ".join(others[:_SHOWN]) + more or "no device of this node is in that pool",
            retry=True,
        )

    def _withholding(self, member: Member) -> str:
        """Why the device is not given out for now."""
        device = member.device
        return self._withheld.get(device.pf if isinstance(device, VF) else device.bdf, "")

    async def _prepare(self, pool: Pool, ids: Sequence[str]) -> list[Grant]:
        """Look up the devices' nodes as they are now, and write their documents.

        :raises PoolError: one is not there.
        """
        found = {bdf: self.pools.by_bdf[bdf].device for bdf in ids}

        def prepare() -> list[Grant]:
            grants = []
            wanted = [bdf for bdf, device in found.items() if pool.vhost(pools.candidate(device))]
            with_vhost = wanted if wanted and self._has_vhost(pool) else ()
            for bdf, device in found.items():
                if self._sysfs.read_one(bdf) is None:
                    raise PoolError(f"{bdf} of {pool.resource} is not there", retry=True)
                nodes = read_nodes(bdf, sysfs=self._sysfs.root, vfio=pool.driver == VFIO)
                grant = Grant(
                    id=bdf,
                    parent=device.pf if isinstance(device, VF) else "",
                    nodes=nodes,
                    vhost=bdf in with_vhost,
                    extra=pool.extra(bdf),  # noqa: S610 (no Django here)
                    ports=self._port_files(bdf) if pool.driver or nodes.group or nodes.uio else "",
                )
                try:
                    write_info(self._info, pool.resource, grant)
                except InfoError as error:  # it is for information: no pod fails for it
                    logger.warning("%s", error)
                grants.append(grant)
            return grants

        return await anyio.to_thread.run_sync(prepare)

    def _has_vhost(self, pool: Pool) -> bool:
        """Whether the host has what `needVhostNet` gives; what it has not is said once, until that changes."""
        absent = vhost.missing(self._sysfs)
        if absent and self._without_vhost.get(pool.resource) != absent:
            logger.warning(
                "%s: needVhostNet, but this host has no %s, so pods get neither node: %s",
                *(pool.resource, " and no ".join(absent), vhost.advice(absent)),
            )
        self._without_vhost[pool.resource] = absent
        return not absent

    def _port_files(self, bdf: str) -> str:
        """Where a DPDK program will find its files; "" when there can be none."""
        try:
            return str(portfiles.prepare(self._info, bdf))
        except DeviceError as error:  # what they say is in the pod's network-status as well
            logger.warning("%s", error)
            return ""

    def _why(self, device: str, resource: str) -> str:
        holder = self.ledger.holders.get(device)
        member = self.pools.by_bdf.get(device)
        if holder:
            return f"{holder} has it"
        if member is None:
            known = self.inventory.by_bdf.get(device)
            return (known.guarded or "no pool selects it") if known is not None else "there is no such device"
        if member.resource != resource:
            return f"it is in the pool {member.resource}"
        return member.reason or self._withholding(member) or "a pod uses it"
