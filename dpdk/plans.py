"""Whether a VF may go to another driver, what that takes, and what must be known to undo it. Pure."""

from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from devices.linux.links import Link
from devices.linux.sysfs import PciRecord
from dpdk.holders import Holder
from dpdk.iommu import Group

VFIO: Final = "vfio-pci"
UIO: Final = "uio_pci_generic"
BIFURCATED: Final = frozenset({"mlx5_core", "mlx4_core", "mana"})
"""Kernel drivers that DPDK works beside: the device keeps its interface, and DPDK gets RDMA verbs."""
USERSPACE: Final = frozenset({VFIO, UIO, "igb_uio"})
NO_MAC: Final = "00:00:00:00:00:00"


class Step(StrEnum):
    """What is done, in this order; a plan has those that it needs."""

    MODULE = "load the driver's module"
    SAVE = "save what there was"
    MAC = "set the MAC through the PF"
    OVERRIDE = "set driver_override"
    UNBIND = "unbind"
    PROBE = "probe drivers"
    VERIFY = "verify the driver"
    NODE = "wait for the device node"


class BindRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What a VF was before it was bound to `target`: all that is needed to put it back.

    `mac` is the admin MAC that was set for it and `admin_mac` the one before; both "" if none was set. `netdev` and
    `address` are its interface and that one's MAC, "" if it had none. After a boot, the record means nothing. `owner`
    says who wanted it bound.
    """

    bdf: str
    target: str
    pf: str
    index: int
    boot_id: str
    owner: str = ""
    driver: str = ""
    override: str = ""
    netdev: str = ""
    address: str = ""
    admin_mac: str = ""
    mac: str = ""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """All that a decision about a VF rests on, read at one moment.

    `device` is None when it is gone. `links` are the interfaces of this namespace; `routed` the indexes of those that
    routes beyond their own prefixes lead over. `guarded` says why the node itself needs the device, "" if it does not.
    `admin_mac` is the VF's MAC as its PF has it, "" when that does not tell. `loaded` are the PCI drivers there are.
    """

    bdf: str
    device: PciRecord | None
    boot_id: str = ""
    group: Group | None = None
    noiommu: bool = False
    links: Sequence[Link] = ()
    routed: Collection[int] = ()
    guarded: str = ""
    holders: Sequence[Holder] = ()
    admin_mac: str = ""
    loaded: Collection[str] = ()


class BindPlan(msgspec.Struct, frozen=True, kw_only=True):
    """Nothing to do when `steps` is empty; nothing is done when there are `refusals`. `notes` are for a person."""

    bdf: str
    target: str
    steps: tuple[Step, ...] = ()
    record: BindRecord | None = None
    refusals: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def plan_bind(
    facts: Facts, target: str = VFIO, *, mac: str = "", together: Collection[str] = (), owner: str = ""
) -> BindPlan:
    """How the VF gets to `target`: vfio-pci, uio_pci_generic, or the bifurcated driver that it is on.

    `mac` is the MAC that its DPDK port shall have; else the one that it has now is made its own through the PF, because
    a port whose VF has none gets a random one. `together` are other VFs that are to leave the same IOMMU group.
    """
    device = facts.device
    if device is None:
        return BindPlan(bdf=facts.bdf, target=target, refusals=("there is no such network device",))
    if not device.physfn:
        return BindPlan(bdf=facts.bdf, target=target, refusals=("it is no VF; a whole NIC stays with the kernel",))
    if target in BIFURCATED:
        return _bifurcated(facts, device, target)
    if device.driver == target:
        return BindPlan(bdf=facts.bdf, target=target, notes=(f"it is on {target} already",))
    refusals, notes = _refusals(facts, device, target), []
    kernel = _kernel(facts, target, together)
    refusals += kernel
    if target == VFIO and facts.group is None and not kernel:
        notes.append("there is no IOMMU: the program can read and write all of the node's memory")
    if refusals:
        return BindPlan(bdf=facts.bdf, target=target, refusals=tuple(refusals))
    record = _record(facts, device, target, mac, owner)
    steps = [Step.SAVE, Step.OVERRIDE, Step.PROBE, Step.VERIFY, Step.NODE]
    if record.mac:
        steps.insert(1, Step.MAC)
    if device.driver:
        steps.insert(steps.index(Step.PROBE), Step.UNBIND)
    if target not in facts.loaded:
        steps.insert(0, Step.MODULE)
    return BindPlan(bdf=facts.bdf, target=target, steps=tuple(steps), record=record, notes=tuple(notes))


def in_use(device: PciRecord, links: Sequence[Link], routed: Collection[int]) -> tuple[str, ...]:
    """How this namespace uses the interfaces of a device, as sentences. An address of the link alone is no use."""
    found = []
    names = {link.index: link.name for link in links}
    for netdev in device.netdevs:
        link = next((each for each in links if each.index == netdev.ifindex), None)
        if link is None:
            continue
        if link.master_index:
            found.append(f"its interface {link.name} belongs to {names.get(link.master_index, 'another interface')}")
        above = [each.name for each in links if each.peer_index == link.index and each.kind and each.kind != "veth"]
        if above:
            found.append(f"{', '.join(above)} stands on its interface {link.name}")
        addresses = [each.address for each in link.addresses if each.scope != "link"]
        if link.up and addresses:
            found.append(f"its interface {link.name} is up and has {', '.join(addresses)}")
        if link.index in routed:
            found.append(f"routes lead over its interface {link.name}")
    return tuple(found)


def _refusals(facts: Facts, device: PciRecord, target: str) -> list[str]:
    found = [f"the node needs it: {facts.guarded}"] if facts.guarded else []
    found += in_use(device, facts.links, facts.routed)
    if device.driver in BIFURCATED:
        found.append(f"DPDK works beside its driver {device.driver}: leave it there and give the pod its RDMA device")
    elif device.driver and device.driver not in USERSPACE and not device.netdevs:
        found.append("its interface is in another network namespace, most likely a pod's")
    if facts.holders:
        found.append(f"it is in use by {', '.join(map(str, facts.holders))}")
    if target not in USERSPACE:
        found.append(f"{target} is no driver that DPDK can use here: vfio-pci, uio_pci_generic or a bifurcated one")
    return found


def _kernel(facts: Facts, target: str, together: Collection[str]) -> list[str]:
    """What the kernel cannot do."""
    group = facts.group
    if target == VFIO and group is None and not facts.noiommu:
        how = "boot with intel_iommu=on or amd_iommu=on, and enable VT-d or AMD-Vi in the BIOS"
        return [f"the kernel has no IOMMU for it ({how}; or allow vfio without one, which is not safe)"]
    if target == VFIO and group is not None:
        blockers = group.blockers({facts.bdf, *together})
        others = ", ".join(f"{each.bdf} ({each.driver})" for each in blockers)
        return [f"its IOMMU group {group.number} is not viable: it also has {others}"] if blockers else []
    if target != VFIO and target in USERSPACE and group is not None and group.translated:
        return [f"the IOMMU stops the DMA that {target} would set up; bind it to vfio-pci, or boot with iommu=pt"]
    return []


def _bifurcated(facts: Facts, device: PciRecord, target: str) -> BindPlan:
    """Such a device is used as it stands."""
    refusals = [f"the node needs it: {facts.guarded}"] if facts.guarded else []
    if device.driver != target:
        refusals.append(f"it is on {device.driver or 'no driver'}, and {target} drives its own devices only")
    elif not device.rdma:
        refusals.append("it has no RDMA device for DPDK's verbs: load mlx5_ib (mlx4_ib, mana_ib)")
    note = f"it stays on {target} and keeps its interface; the pod gets its RDMA device"
    return BindPlan(bdf=facts.bdf, target=target, refusals=tuple(refusals), notes=() if refusals else (note,))


def _record(facts: Facts, device: PciRecord, target: str, mac: str, owner: str) -> BindRecord:
    netdev = device.netdev
    address = netdev.mac if netdev else ""
    wanted = mac.lower() or (address if facts.admin_mac == NO_MAC else "")
    if wanted in {facts.admin_mac, NO_MAC}:
        wanted = ""
    return BindRecord(
        bdf=facts.bdf,
        target=target,
        pf=device.physfn or "",
        index=device.vf_index,
        boot_id=facts.boot_id,
        owner=owner,
        driver=device.driver,
        override=device.driver_override,
        netdev=netdev.name if netdev else "",
        address=address,
        admin_mac=(facts.admin_mac or NO_MAC) if wanted else "",
        mac=wanted,
    )
