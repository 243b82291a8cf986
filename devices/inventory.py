"""The NICs of this node and their VFs, made of what sysfs says, and changed device by device. Pure.

A VF is announced before its links exist. It is known as one all the same: by its PF's list, or by its address, which
the PF's SR-IOV capability foretells. Else it would pass for a NIC for a moment, and be offered as one.
"""

from bisect import insort
from collections.abc import Iterable, Mapping
from itertools import compress
from operator import is_not
from typing import Final

import msgspec

from devices.linux.sysfs import NetRecord, PciRecord, vf_index

_LINK_TYPES: Final = {1: "ether", 32: "infiniband"}


class VF(msgspec.Struct, frozen=True, kw_only=True):
    """A virtual function. `pf` and `pf_netdev` are its physical function's address and interface.

    `index` is -1 while that is not known: the VF cannot be configured then. `netdev` is "" without a kernel driver, and
    while the interface is in a pod. `link` is up, down or "" (no interface here); `mac` that of the interface.
    `guarded` says why the node itself needs it.
    """

    bdf: str
    pf: str
    index: int
    pf_netdev: str = ""
    vendor: str = ""
    device: str = ""
    driver: str = ""
    netdev: str = ""
    ifindex: int = 0
    mac: str = ""
    mtu: int = 0
    numa: int = -1
    iommu_group: str | None = None
    link_type: str = ""
    link: str = ""
    rdma: tuple[str, ...] = ()
    acpi_index: str = ""
    guarded: str = ""


class PF(msgspec.Struct, frozen=True, kw_only=True):
    """A physical function, or a NIC without SR-IOV (`total_vfs` 0). `vfs` are in the order of their index.

    `num_vfs` is what the kernel says it made; `vfs` those that are there. `guarded` says why it must not be touched.
    """

    bdf: str
    netdev: str = ""
    ifindex: int = 0
    vendor: str = ""
    device: str = ""
    driver: str = ""
    numa: int = -1
    iommu_group: str | None = None
    mac: str = ""
    mtu: int = 0
    link_type: str = ""
    link: str = ""
    total_vfs: int = 0
    num_vfs: int = 0
    rdma: tuple[str, ...] = ()
    switch_id: str = ""
    acpi_index: str = ""
    guarded: str = ""
    vfs: tuple[VF, ...] = ()


Device = PF | VF


class Inventory(msgspec.Struct, frozen=True, kw_only=True):
    """All of it at one moment. `records` is what it was made of, for the next change."""

    pfs: tuple[PF, ...] = ()
    by_bdf: Mapping[str, Device] = {}
    records: Mapping[str, PciRecord] = {}
    guarded: Mapping[str, str] = {}

    @property
    def vfs(self) -> tuple[VF, ...]:
        """The VFs of all physical functions."""
        return tuple(vf for pf in self.pfs for vf in pf.vfs)

    def pf_of(self, vf: VF) -> PF | None:
        """The VF's physical function; None when it is not there (it was passed to a virtual machine)."""
        found = self.by_bdf.get(vf.pf)
        return found if isinstance(found, PF) else None

    def by_netdev(self, name: str) -> Device | None:
        """The device with that interface."""
        return next((each for each in self.by_bdf.values() if name and each.netdev == name), None)


def build(records: Iterable[PciRecord], *, guarded: Mapping[str, str]) -> Inventory:
    """The inventory of these records. `guarded` says of addresses why the node needs them."""
    known = {record.bdf: record for record in records}
    parents = {bdf: _parent(record, known) for bdf, record in known.items()}
    children: dict[str, list[PciRecord]] = {}
    for bdf, parent in parents.items():
        if parent is not None:
            children.setdefault(parent, []).append(known[bdf])
    pfs = [_pf(known[bdf], children.get(bdf, ()), guarded) for bdf, parent in parents.items() if parent is None]
    # A VF whose PF is out of sight is nobody's here: it cannot be configured. It is in `records` all the same.
    by_bdf: dict[str, Device] = {}
    for pf in pfs:
        by_bdf[pf.bdf] = pf
        by_bdf.update((vf.bdf, vf) for vf in pf.vfs)
    return Inventory(pfs=tuple(sorted(pfs, key=_address)), by_bdf=by_bdf, records=known, guarded=guarded)


def update(inventory: Inventory, bdf: str, record: PciRecord | None) -> Inventory:
    """The inventory after one device changed, appeared, or (None) went; the same object when nothing is different."""
    if record == inventory.records.get(bdf):
        return inventory
    known = {**inventory.records, bdf: record} if record is not None else dict(inventory.records)
    if record is None:
        del known[bdf]
    was = inventory.by_bdf.get(bdf)
    parent = _parent(record, known) if record is not None else was.pf if isinstance(was, VF) else None
    if isinstance(was, PF):
        if record is not None and parent is None and _same_vfs(was, inventory.records[bdf], record, known):
            return _with_pf(inventory, known, was, record)
    elif parent is not None and (was is None or was.pf == parent):
        home = inventory.by_bdf.get(parent)
        if isinstance(home, PF):
            return _with_vf(inventory, known, home, bdf, record)
    return build(known.values(), guarded=inventory.guarded)  # a NIC came or went, or something changed its kind


def guard(inventory: Inventory, guarded: Mapping[str, str]) -> Inventory:
    """The inventory with other guarded devices."""
    if guarded == inventory.guarded:
        return inventory
    by_bdf = dict(inventory.by_bdf)
    others = {bdf for bdf, _ in guarded.items() ^ inventory.guarded.items()}
    for pf in inventory.pfs:
        here = [vf for vf in pf.vfs if vf.bdf in others]
        if here or pf.bdf in others:
            by_bdf.update((vf.bdf, msgspec.structs.replace(vf, guarded=guarded.get(vf.bdf, ""))) for vf in here)
            vfs = tuple(vf for each in pf.vfs if isinstance(vf := by_bdf[each.bdf], VF))
            by_bdf[pf.bdf] = msgspec.structs.replace(pf, guarded=guarded.get(pf.bdf, ""), vfs=vfs)
    pfs = (each for pf in inventory.pfs if isinstance(each := by_bdf[pf.bdf], PF))
    return Inventory(pfs=tuple(pfs), by_bdf=by_bdf, records=inventory.records, guarded=guarded)


def changed(before: Inventory, after: Inventory) -> set[str]:
    """The addresses of devices that came, went, or are other objects in the two: nothing else can be different."""
    if before is after:
        return set()
    was, now = ({pf.bdf: pf for pf in each.pfs} for each in (before, after))
    found: set[str] = set()
    for bdf in was.keys() | now.keys():
        old, new = was.get(bdf), now.get(bdf)
        if old is not new:
            found.add(bdf)
            found |= _other_objects(old.vfs if old else (), new.vfs if new else ())
    return found


def _other_objects(before: tuple[VF, ...], after: tuple[VF, ...]) -> set[str]:
    if len(before) == len(after):  # all but the changed ones are where they were: no set of all is made
        pairs = zip(before, after, strict=True)
        return {vf.bdf for pair in compress(pairs, map(is_not, before, after)) for vf in pair}
    differing = set(map(id, before)) ^ set(map(id, after))
    both = (*before, *after)
    return {vf.bdf for vf in compress(both, map(differing.__contains__, map(id, both)))}


def _same_vfs(was: PF, before: PciRecord, record: PciRecord, known: Mapping[str, PciRecord]) -> bool:
    """Whether the VFs known so far are still those of the PF, under the same numbers.

    Those that it lists and that are not known come with events of their own, and likewise those that go.
    """
    if _capability(before) != _capability(record):
        return False  # it foretells other ones, and what passed for a NIC may be its VF
    listed, now = set(before.virtfns), set(record.virtfns)
    touched = {vf for _, vf in listed ^ now} & known.keys()
    numbers = {vf.bdf: vf.index for vf in was.vfs if vf.bdf in touched} if touched else {}
    agree = all(numbers.get(vf) == index or vf not in known for index, vf in now - listed)
    return agree and all(known[vf].physfn == record.bdf and known[vf].vf_index >= 0 for vf in touched)


def _capability(record: PciRecord) -> tuple[int, ...]:
    """All by which a PF foretells the addresses of its VFs."""
    return record.total_vfs, record.vf_offset, record.vf_stride


def _with_pf(inventory: Inventory, known: Mapping[str, PciRecord], was: PF, record: PciRecord) -> Inventory:
    """A PF changed; its VFs do only if what they say of it did."""
    pf, vfs = _pf(record, (), inventory.guarded), was.vfs
    if (pf.netdev, pf.link_type) != (was.netdev, was.link_type):
        vfs = tuple(_vf(known[vf.bdf], record, inventory.guarded) for vf in was.vfs)
    return _replace(inventory, known, msgspec.structs.replace(pf, vfs=vfs), vfs)


def _with_vf(
    inventory: Inventory, known: Mapping[str, PciRecord], home: PF, bdf: str, record: PciRecord | None
) -> Inventory:
    """A VF of this PF changed, came or went."""
    kept = [vf for vf in home.vfs if vf.bdf != bdf]
    if record is None:
        return _replace(inventory, known, msgspec.structs.replace(home, vfs=tuple(kept)), (), gone=bdf)
    vf = _vf(record, known[home.bdf], inventory.guarded)
    insort(kept, vf, key=_order)
    return _replace(inventory, known, msgspec.structs.replace(home, vfs=tuple(kept)), (vf,))


def _replace(
    inventory: Inventory, known: Mapping[str, PciRecord], pf: PF, vfs: Iterable[VF], *, gone: str = ""
) -> Inventory:
    by_bdf = {**inventory.by_bdf, pf.bdf: pf}
    by_bdf.pop(gone, None)
    by_bdf.update((vf.bdf, vf) for vf in vfs)
    pfs = tuple(pf if each.bdf == pf.bdf else each for each in inventory.pfs)
    return Inventory(pfs=pfs, by_bdf=by_bdf, records=known, guarded=inventory.guarded)


def _parent(record: PciRecord, known: Mapping[str, PciRecord]) -> str | None:
    """The address of its physical function, if it is a VF."""
    if record.physfn is not None or record.total_vfs:
        return record.physfn
    for other in known.values():
        if other.total_vfs and _index(record.bdf, other) >= 0:
            return other.bdf
    return None


def _index(bdf: str, pf: PciRecord) -> int:
    """Which VF of the PF has that address; -1 for none."""
    listed = next((index for index, vf in pf.virtfns if vf == bdf), -1)
    if listed >= 0:
        return listed
    foretold = vf_index(pf.bdf, bdf, pf.vf_offset, pf.vf_stride)
    return foretold if foretold < pf.total_vfs else -1


def _pf(record: PciRecord, children: Iterable[PciRecord], guarded: Mapping[str, str]) -> PF:
    net = record.netdev
    return PF(
        bdf=record.bdf,
        netdev=net.name if net else "",
        ifindex=net.ifindex if net else 0,
        vendor=record.vendor,
        device=record.device,
        driver=record.driver,
        numa=record.numa_node,
        iommu_group=record.iommu_group,
        mac=net.mac if net else "",
        mtu=net.mtu if net else 0,
        link_type=_link_type(net),
        link=_link(net),
        total_vfs=record.total_vfs,
        num_vfs=record.num_vfs,
        rdma=record.rdma,
        switch_id=net.switch_id if net else "",
        acpi_index=record.acpi_index,
        guarded=guarded.get(record.bdf, ""),
        vfs=tuple(sorted((_vf(child, record, guarded) for child in children), key=_order)),
    )


def _vf(record: PciRecord, pf: PciRecord, guarded: Mapping[str, str]) -> VF:
    net, pf_net = record.netdev, pf.netdev
    return VF(
        bdf=record.bdf,
        pf=pf.bdf,
        index=record.vf_index if record.vf_index >= 0 else _index(record.bdf, pf),
        pf_netdev=pf_net.name if pf_net else "",
        vendor=record.vendor,
        device=record.device,
        driver=record.driver,
        netdev=net.name if net else "",
        ifindex=net.ifindex if net else 0,
        mac=net.mac if net else "",
        mtu=net.mtu if net else 0,
        numa=record.numa_node,
        iommu_group=record.iommu_group,
        link_type=_link_type(net or pf_net),
        link=_link(net),
        rdma=record.rdma,
        acpi_index=record.acpi_index,
        guarded=guarded.get(record.bdf, ""),
    )


def _link(net: NetRecord | None) -> str:
    """Whether packets pass. An interface that is down has no carrier to tell of."""
    if net is None:
        return ""
    return "up" if net.carrier else "down"


def _link_type(net: NetRecord | None) -> str:
    return _LINK_TYPES.get(net.type, "") if net else ""


def _address(device: PF) -> str:
    return device.bdf


def _order(vf: VF) -> tuple[int, str]:
    return vf.index, vf.bdf
