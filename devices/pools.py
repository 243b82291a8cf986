"""Which device is in which pool, and whether it is well. Pure.

A device's place depends on itself, its PF and the pools, and for those that stay on where they were. So a change costs
what it touches: the devices that are other objects than before, all VFs of a PF whose link changed, and those that
somebody took or gave back.
"""

from collections.abc import Iterable, Mapping, Sequence
from operator import attrgetter
from typing import Final

import msgspec

from devices.drafts import Drafts
from devices.inventory import PF, VF, Device, Inventory, changed
from devices.pool_config import Health, Pool, PoolConfig, parse_config
from devices.selectors import Candidate, DeviceType

__all__ = ["Member", "Pool", "PoolConfig", "Pools", "assign", "candidate", "parse_config", "reassign", "unhealthy"]

_ACCELERATOR: Final = 0x12
_NETWORK: Final = 0x02
_SHOWN: Final = 4
_NOBODY: Final[Mapping[str, str]] = {}


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """A device in a pool, as it was when it was last well there. `reason` says why it is not healthy."""

    device: Device
    resource: str
    reason: str = ""

    @property
    def healthy(self) -> bool:
        """Whether it can be given out."""
        return not self.reason


Pairs = tuple[tuple[str, str], ...]
"""Of a device: the pool that it is in, and another that selects it."""


class Pools(msgspec.Struct, frozen=True, kw_only=True):
    """Who is where. `members` has each pool of the config, also an empty one, by address.

    The rest is what it was made of, and what spares the next change the devices that it does not touch: `contested` has
    the devices that several pools select, by pairs of these, and `pairs` the same by device; `apart` are the members
    that the inventory has not, or not like this.
    """

    members: Mapping[str, tuple[Member, ...]] = {}
    by_bdf: Mapping[str, Member] = {}
    contested: Mapping[tuple[str, str], tuple[str, ...]] = {}
    pairs: Mapping[str, Pairs] = {}
    apart: frozenset[str] = frozenset()
    config: PoolConfig = PoolConfig()
    inventory: Inventory = Inventory()
    held: Mapping[str, str] = _NOBODY

    @property
    def overlaps(self) -> tuple[str, ...]:
        """What several pools want, in words, in the order of the file."""
        order = [pool.resource for pool in self.config.pools]
        pairs = sorted(self.contested, key=lambda pair: (order.index(pair[0]), order.index(pair[1])))
        return tuple(_said(pair, self.contested[pair]) for pair in pairs)


def candidate(device: Device) -> Candidate:
    """The device as selectors see it."""
    vf = device if isinstance(device, VF) else None
    return Candidate(
        bdf=device.bdf,
        vendor=device.vendor,
        device=device.device,
        driver=device.driver,
        pf=vf.pf if vf else "",
        pf_name=vf.pf_netdev if vf else "",
        index=vf.index if vf else -1,
        link_type=device.link_type,
        acpi_index=device.acpi_index,
        rdma=bool(device.rdma),
    )


def assign(
    inventory: Inventory, config: PoolConfig, *, before: Pools | None = None, held: Mapping[str, str] = _NOBODY
) -> Pools:
    """Put every device that can be given out into the first pool, in file order, that selects it.

    With `before`, the pools follow the hardware: a member that lost its driver, or was removed without its PF having
    been told to have fewer VFs, stays and is not healthy. What is `held` (each with its resource, "" when that is not
    known) stays where it is as long as its pool exists.
    """
    return reassign(before or Pools(), inventory, config, held=held)[0]


def reassign(
    before: Pools, inventory: Inventory, config: PoolConfig, *, held: Mapping[str, str] = _NOBODY
) -> tuple[Pools, frozenset[str]]:
    """As `assign`; and the addresses of those that are not in the pools as they were before.

    With the same object for `config` as before only what changed is asked: 512 VFs and 8 pools take 5 ms, one VF 0.1.
    """
    anew = before.config is not config
    held = before.held if before.held == held else held
    touched = before.by_bdf.keys() | inventory.by_bdf.keys() if anew else _touched(before, inventory, held)
    draft = _Draft(before, inventory, config, held, anew=anew)
    for bdf in sorted(touched):
        draft.place(bdf)
    return draft.done(), frozenset(draft.moved)


def _touched(before: Pools, inventory: Inventory, held: Mapping[str, str]) -> set[str]:
    """Every device whose place may be another than it was."""
    found = changed(before.inventory, inventory)
    touched = set(found)
    if held is not before.held:
        touched.update(bdf for bdf, _ in held.items() ^ before.held.items())
    for bdf in found:
        was, now = _pf_at(before.inventory, bdf), _pf_at(inventory, bdf)
        if was is None and now is None:
            continue
        linked = _link(was) == _link(now)
        if not linked and now is not None:
            touched.update(vf.bdf for vf in now.vfs)
        if not linked or _count(was) != _count(now):
            touched |= {away for away in _away(before, bdf) if not linked or away not in inventory.by_bdf}
    return touched


def _away(before: Pools, pf: str) -> Iterable[str]:
    """Members that had this PF when they were last well. By its link and its number of VFs they stay, and are sick."""
    for bdf in before.apart:
        device = before.by_bdf[bdf].device
        if isinstance(device, VF) and device.pf == pf:
            yield bdf


def _pf_at(inventory: Inventory, bdf: str) -> PF | None:
    found = inventory.by_bdf.get(bdf)
    return found if isinstance(found, PF) else None


def _link(pf: PF | None) -> tuple[str, str] | None:
    return (pf.link, pf.netdev) if pf is not None else None


def _count(pf: PF | None) -> int:
    return pf.num_vfs if pf is not None else -1


class _Draft:
    """Pools in the making. What is not touched is shared with those before; `anew` shares nothing."""

    def __init__(
        self, before: Pools, inventory: Inventory, config: PoolConfig, held: Mapping[str, str], *, anew: bool
    ) -> None:
        self.moved: set[str] = set()
        self._anew = anew
        self._before = before
        self._inventory = inventory
        self._config = config
        self._held = held
        self._pools = {pool.resource: pool for pool in config.pools}
        self._by_bdf = dict(before.by_bdf)
        self._apart = set(before.apart)
        self._pairs = {} if anew else dict(before.pairs)
        self._members = Drafts[str, Member]({} if anew else before.members, attrgetter("device.bdf"))
        self._contested = Drafts[tuple[str, str], str]({} if anew else before.contested, str)

    def done(self) -> Pools:
        """What it has become."""
        members = self._members.done()
        return Pools(
            members={resource: members.get(resource, ()) for resource in self._pools},
            by_bdf=self._by_bdf,
            contested={pair: each for pair, each in self._contested.done().items() if each},
            pairs=self._pairs,
            apart=frozenset(self._apart),
            config=self._config,
            inventory=self._inventory,
            held=self._held,
        )

    def place(self, bdf: str) -> None:
        """Put the device where it belongs now, if anywhere."""
        now = self._inventory.by_bdf.get(bdf)
        pairs: Pairs = ()
        was = self._before.by_bdf.get(bdf)
        member = self._kept(bdf, now, was)
        if member is None and now is not None and _offered(now):
            resource, pairs = self._wanted(now)
            if resource:
                reason = unhealthy(self._inventory, self._pools[resource], now)
                member = Member(device=now, resource=resource, reason=reason)
        if member is None and was is not None and bdf in self._held:  # its pool is gone, and no other wants it
            member = self._kept(bdf, now, None)
        self._settle(bdf, was, member)
        self._contest(bdf, pairs if bdf not in self._held else ())  # what is in use stays, whoever wants it
        if member is not None and member.device is not now:
            self._apart.add(bdf)
        else:
            self._apart.discard(bdf)

    def _kept(self, bdf: str, now: Device | None, was: Member | None) -> Member | None:
        """A member that stays although it would not get in: one in use, also after a restart, or one that is broken."""
        holds = bdf in self._held
        if was is None and holds and now is not None:
            was = Member(device=now, resource=self._held[bdf])
        pool = self._pools.get(was.resource) if was is not None else None
        if was is None or pool is None or (now is not None and now.guarded):
            return None
        device = was.device
        if holds:
            # Its driver may be another for as long as a pod has it, and its interface be out of sight.
            device = now if now is not None and now.driver == device.driver else device
        elif not (_broken(self._inventory, pool, device) and pool.selects(candidate(device))):
            return None
        return Member(device=device, resource=was.resource, reason=unhealthy(self._inventory, pool, device))

    def _wanted(self, device: Device) -> tuple[str, Pairs]:
        """The first pool that selects the device, "" for none, and with which other ones it is contested."""
        was = self._before.by_bdf.get(device.bdf)
        if was is not None and was.device is device and device.bdf not in self._before.held and not self._anew:
            return was.resource, self._before.pairs.get(device.bdf, ())
        seen, kinds = candidate(device), _kinds(self._inventory, device)
        found = [pool.resource for pool in self._config.pools if pool.kind in kinds and pool.selects(seen)]
        return (found[0], tuple((found[0], other) for other in found[1:])) if found else ("", ())

    def _settle(self, bdf: str, was: Member | None, member: Member | None) -> None:
        if member is not None and was is not None and member.device is was.device and member == was:
            member = was  # the one that there was
        if member is was and not self._anew:
            return
        if member != was:
            self.moved.add(bdf)
        if was is not None:
            self._members.remove(was.resource, bdf)
            del self._by_bdf[bdf]
        if member is not None:
            self._members.add(member.resource, member)
            self._by_bdf[bdf] = member

    def _contest(self, bdf: str, pairs: Pairs) -> None:
        was = self._pairs.pop(bdf, ())
        if pairs:
            self._pairs[bdf] = pairs
        if was != pairs:
            for pair in was:
                self._contested.remove(pair, bdf)
            for pair in pairs:
                self._contested.add(pair, bdf)


def unhealthy(inventory: Inventory, pool: Pool, device: Device) -> str:
    """Why the device cannot be given out now, by what the pool wants to know; "" when it can.

    A PF's own link is not asked for: an interface that waits for its pod is down.
    """
    now = inventory.by_bdf.get(device.bdf)
    pf = inventory.by_bdf.get(device.pf) if isinstance(device, VF) else None
    if now is None:
        if Health.PRESENCE not in pool.health:
            return ""
        orphan = isinstance(device, VF) and pf is None
        return "it and its PF are not there" if orphan else "it is not there"
    if not now.driver and Health.DRIVER in pool.health:
        return f"no driver has it, it was {device.driver}" if device.driver else "no driver has it"
    if isinstance(pf, PF) and pf.link == "down" and Health.CARRIER in pool.health:
        return f"the link of its PF {pf.netdev or pf.bdf} is down"
    return ""


def _offered(device: Device) -> bool:
    """Whether upstream would offer it, and the node does not need it: VFs, and NICs that have none."""
    has_vfs = isinstance(device, PF) and bool(device.num_vfs or device.vfs)
    return bool(device.driver) and not device.guarded and not has_vfs


def _kinds(inventory: Inventory, device: Device) -> tuple[DeviceType, ...]:
    record = inventory.records.get(device.bdf)
    base = record.class_ >> 16 if record is not None else _NETWORK
    return (DeviceType.ACCELERATOR,) if base == _ACCELERATOR else (DeviceType.NET,) if base == _NETWORK else ()


def _broken(inventory: Inventory, pool: Pool, device: Device) -> bool:
    """Whether the hardware failed the pool, instead of somebody having changed what there is."""
    now = inventory.by_bdf.get(device.bdf)
    if now is not None:
        return not now.driver and Health.DRIVER in pool.health
    pf = inventory.by_bdf.get(device.pf) if isinstance(device, VF) else None
    fewer = isinstance(device, VF) and isinstance(pf, PF) and pf.num_vfs <= device.index
    return not fewer and Health.PRESENCE in pool.health


def _said(pair: tuple[str, str], addresses: Sequence[str]) -> str:
    number = "1 device" if len(addresses) == 1 else f"{len(addresses)} devices"
    shown = ", ".join(addresses[:_SHOWN]) + (" ..." if len(addresses) > _SHOWN else "")
    return f"{pair[1]} does not get {number} that it selects, as {pair[0]} comes first in the file: {shown}"
