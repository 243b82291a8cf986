"""Which devices a pool of config.json selects: every selector of upstream's device plugin.

Pure. Source: sriov-network-device-plugin 3.11 (pkg/resources, pkg/netdevice). A list selects what any of its items
does, an object what all of its lists do. Ours is right where upstream is not: two items of one PF are united (there
the second is never looked at), acpiIndexes counts for accelerators (documented there, and forgotten), and a range that
cannot be read is refused instead of matching some of what was meant.
"""

import re
from collections.abc import Collection, Sequence
from enum import StrEnum
from typing import Final

import msgspec

from devices.config import ConfigError, Table, nearest, quoted

MAX_VFS: Final = 65535
"""The PCI standard counts VFs in 16 bits."""


class DeviceType(StrEnum):
    """What kind of devices a pool has."""

    NET = "netDevice"
    ACCELERATOR = "accelerator"
    AUXILIARY = "auxNetDevice"


_COMMON: Final = ("vendors", "devices", "drivers")
_OF_VF: Final = ("pfNames", "rootDevices", "linkTypes", "isRdma", "vdpaType", "needVhostNet")
KEYS: Final = {
    DeviceType.NET: (*_COMMON, "pciAddresses", "acpiIndexes", *_OF_VF, "ddpProfiles", "pKeys"),
    DeviceType.ACCELERATOR: (*_COMMON, "pciAddresses", "acpiIndexes"),
    DeviceType.AUXILIARY: (*_COMMON, *_OF_VF, "auxTypes"),
}
LINK_TYPES: Final = ("ether", "infiniband")
VDPA_TYPES: Final = ("virtio", "vhost")
AUX_TYPES: Final = ("sf",)

_ITEM = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")
_HEX_ID = re.compile(r"[0-9a-f]{4}")
_ADDRESS = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A device as selectors see it. `pf` and `pf_name` are its physical function, both empty for a PF itself."""

    bdf: str
    vendor: str = ""
    device: str = ""
    driver: str = ""
    pf: str = ""
    pf_name: str = ""
    index: int = -1
    link_type: str = ""
    acpi_index: str = ""
    rdma: bool = False
    vdpa_type: str = ""
    ddp_profile: str = ""
    pkey: str = ""
    aux_type: str = ""


class Ranged(msgspec.Struct, frozen=True, kw_only=True):
    """A PF, and which of its VFs: all without spans, else those within one of them, both ends included."""

    name: str
    spans: tuple[tuple[int, int], ...] = ()

    def covers(self, name: str, index: int) -> bool:
        """Whether a VF of that PF is meant. Names match in any case."""
        return self.name.casefold() == name.casefold() and self.has(index)

    def has(self, index: int) -> bool:
        """Whether the VF of that number is meant."""
        return not self.spans or any(low <= index <= high for low, high in self.spans)

    def __str__(self) -> str:
        spans = ",".join(f"{low}-{high}" if high != low else str(low) for low, high in self.spans)
        return f"{self.name}#{spans}" if spans else self.name


class Selector(msgspec.Struct, frozen=True, kw_only=True):
    """One object of `selectors`. An empty list does not select; `need_vhost` never does."""

    vendors: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()
    drivers: tuple[str, ...] = ()
    pci_addresses: tuple[str, ...] = ()
    acpi_indexes: tuple[str, ...] = ()
    pf_names: tuple[Ranged, ...] = ()
    root_devices: tuple[Ranged, ...] = ()
    link_types: tuple[str, ...] = ()
    ddp_profiles: tuple[str, ...] = ()
    pkeys: tuple[str, ...] = ()
    aux_types: tuple[str, ...] = ()
    rdma: bool = False
    vdpa_type: str = ""
    need_vhost: bool = False

    def matches(self, device: Candidate) -> bool:
        """Whether the device is selected."""
        return (
            _among(device.vendor, self.vendors)
            and _among(device.device, self.devices)
            and _among(device.driver, self.drivers)
            and _among(device.bdf, self.pci_addresses)
            and _among(device.acpi_index, self.acpi_indexes)
            and _covered(device.pf_name, device.index, self.pf_names)
            and _covered(device.pf, device.index, self.root_devices)
            and _among(device.link_type, self.link_types)
            and _among(device.ddp_profile, self.ddp_profiles)
            and _among(device.pkey, self.pkeys)
            and _among(device.aux_type, self.aux_types)
            and (device.rdma or not self.rdma)
            and (not self.vdpa_type or device.vdpa_type == self.vdpa_type)
        )


def _among(value: str, wanted: Collection[str]) -> bool:
    return not wanted or value in wanted


def _covered(name: str, index: int, wanted: Sequence[Ranged]) -> bool:
    return not wanted or any(each.covers(name, index) for each in wanted)


def parse_ranged(text: str, where: str) -> Ranged:
    """`NAME` or `NAME#item,item`, an item being `3` or `3-7`.

    :raises ConfigError: with what was likely meant.
    """
    name, *rest = text.split("#")
    if not name or name != name.strip():
        raise _bad_range(text, where, "it does not begin with the name of a PF")
    if not rest:
        return Ranged(name=name)
    if len(rest) > 1:
        raise _bad_range(text, where, 'a second "#": several items of one PF have commas between them')
    spans = []
    for item in rest[0].split(","):
        match = _ITEM.fullmatch(item)
        if match is None:
            problem = "blanks" if item != item.strip() else f"{quoted(item)} is neither a VF's number nor first-last"
            raise _bad_range(text, where, problem)
        low, high = int(match[1]), int(match[2] or match[1])
        if high < low:
            raise _bad_range(text, where, f"{low}-{high} runs backwards")
        if high > MAX_VFS:
            raise _bad_range(text, where, f"no PF has a VF {high}")
        spans.append((low, high))
    return Ranged(name=name, spans=tuple(spans))


def _bad_range(text: str, where: str, problem: str) -> ConfigError:
    near = _repaired(text)
    hint = f'did you mean "{near}"?' if near else 'such as "ens1f0#0-3,7", or the name alone for all VFs'
    return ConfigError(f"{where}: {quoted(text)}: {problem}", hint=hint)


def _repaired(text: str) -> str:
    """The range without blanks, further "#", items that are none and wrong order; "" when nothing is left."""
    name, *rest = re.sub(r"\s+", "", text[:200]).split("#")
    items = []
    for item in ",".join(rest).split(","):
        if match := _ITEM.fullmatch(item):
            first, last = int(match[1]), int(match[2] or match[1])
            items.append(f"{min(first, last)}-{max(first, last)}" if match[2] else str(first))
    return f"{name}#{','.join(items)}" if name.isprintable() and name and items else ""


def parse_selectors(value: object, kind: DeviceType, where: str, said: list[str]) -> tuple[Selector, ...]:
    """A list of selector objects, or one for a list of one; none for an empty list. `said` takes warnings.

    :raises ConfigError: for what no selector can be.
    """
    items = value if isinstance(value, list | tuple) else [value]
    return tuple(
        _selector(item, kind, f"{where}[{index}]" if items is value else where, said)
        for index, item in enumerate(items)
    )


def _selector(value: object, kind: DeviceType, where: str, said: list[str]) -> Selector:
    if isinstance(value, dict):
        value = _of_other_types(value, kind, where, said)
    table = Table(value, where, keys=KEYS[kind], said=said)
    selector = Selector(
        vendors=_ids(table, "vendors", said),
        devices=_ids(table, "devices", said),
        drivers=table.texts("drivers"),
        pci_addresses=_addresses(table, said),
        acpi_indexes=table.texts("acpiIndexes"),
        pf_names=_ranges(table, "pfNames"),
        root_devices=_ranges(table, "rootDevices"),
        link_types=_known(table, "linkTypes", LINK_TYPES, said),
        ddp_profiles=table.texts("ddpProfiles"),
        pkeys=table.texts("pKeys"),
        aux_types=_aux_types(table, kind),
        rdma=table.flag("isRdma"),
        vdpa_type=table.choice("vdpaType", VDPA_TYPES, "") if table.text("vdpaType") else "",
        need_vhost=table.flag("needVhostNet"),
    )
    if selector.rdma and selector.vdpa_type:
        raise ConfigError(
            f"{where}: isRdma and vdpaType exclude one another", hint="write two objects into the list of selectors"
        )
    if selector == Selector(need_vhost=selector.need_vhost):
        said.append(f"{where}: selects every device, as it names none")
    return selector


def _of_other_types(value: dict[object, object], kind: DeviceType, where: str, said: list[str]) -> dict[object, object]:
    """The object without selectors that only other device types have: upstream ignores them, and we say so."""
    here = {key.casefold() for key in KEYS[kind]}
    others = {key.casefold(): (key, other) for other in DeviceType for key in KEYS[other]}
    kept = {}
    for key, item in value.items():
        fold = key.casefold() if isinstance(key, str) else ""
        if fold not in here and fold in others:
            name, other = others[fold]
            said.append(f"{where}: {name} is a selector of {other}, not of {kind}; ignored, so it narrows nothing")
        else:
            kept[key] = item
    return kept


def _ranges(table: Table, key: str) -> tuple[Ranged, ...]:
    return tuple(parse_ranged(item, f"{table.place(key)}[{at}]") for at, item in enumerate(table.texts(key)))


def _ids(table: Table, key: str, said: list[str]) -> tuple[str, ...]:
    values = table.texts(key)
    for value in values:
        if not _HEX_ID.fullmatch(value):
            plain = value.strip().lower().removeprefix("0x")
            near = f', did you mean "{plain}"?' if _HEX_ID.fullmatch(plain) else ""
            said.append(f"{table.place(key)}: {quoted(value)} matches nothing: four hex digits in lower case{near}")
    return values


def _addresses(table: Table, said: list[str]) -> tuple[str, ...]:
    values = table.texts("pciAddresses")
    for value in values:
        if not _ADDRESS.fullmatch(value):
            place = table.place("pciAddresses")
            short = [
                each for each in (value.strip().lower(), f"0000:{value.strip().lower()}") if _ADDRESS.fullmatch(each)
            ]
            near = f', did you mean "{short[0]}"?' if short else ""
            said.append(f"{place}: {quoted(value)} matches nothing: an address is like 0000:3b:02.1{near}")
    return values


def _known(table: Table, key: str, known: Collection[str], said: list[str]) -> tuple[str, ...]:
    values = table.texts(key)
    for value in values:
        if value not in known:
            near = nearest(value, known)
            said.append(
                f"{table.place(key)}: {quoted(value)} matches nothing"
                + (f', did you mean "{near}"?' if near else f": one of {', '.join(known)}")
            )
    return values


def _aux_types(table: Table, kind: DeviceType) -> tuple[str, ...]:
    values = table.texts("auxTypes")
    if kind is not DeviceType.AUXILIARY:
        return ()
    if not values:
        raise ConfigError(f"{table.place('auxTypes')}: missing", hint='an auxNetDevice needs "auxTypes": ["sf"]')
    for value in values:
        if value not in AUX_TYPES:
            raise ConfigError(f"{table.place('auxTypes')}: {quoted(value)} is not supported", hint='only "sf" is')
    return values
