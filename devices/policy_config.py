"""Policies as they are written. Pure.

The shape is that of SriovNetworkNodePolicy (sriovnetwork.openshift.io/v1), the rules those of its webhook, without its
list of supported NICs: what has SR-IOV is good enough here. What a policy asks for and this program does not do is
refused, never dropped.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import msgspec

from devices.config import ConfigError, Table, quoted, refuse
from devices.pool_config import check_name
from devices.selectors import Ranged, parse_ranged

KIND: Final = "SriovNetworkNodePolicy"
GROUP: Final = "sriovnetwork.openshift.io"
MELLANOX: Final = "15b3"
MELLANOX_MOST: Final = 128
VFIO: Final = "vfio-pci"

_MOST: Final = 65535
_KEYS: Final = (
    *("resourceName", "nodeSelector", "priority", "mtu", "numVfs", "nicSelector", "deviceType", "isRdma"),
    *("needVhostNet", "linkType", "eSwitchMode", "vdpaType", "excludeTopology", "externallyManaged", "bridge"),
)
_NIC_KEYS: Final = ("vendor", "deviceID", "rootDevices", "pfNames", "netFilter")
_HEX_ID = re.compile(r"[0-9a-f]{4}")


class NicSelector(msgspec.Struct, frozen=True, kw_only=True):
    """Which PFs, and which of their VFs: of several keys, all must hold. `vendor` and `device` are the PF's."""

    vendor: str = ""
    device: str = ""
    root_devices: tuple[str, ...] = ()
    pf_names: tuple[Ranged, ...] = ()

    def ranges(self, pf_name: str) -> tuple[Ranged, ...]:
        """Those of `pf_names` that are this PF's."""
        return tuple(each for each in self.pf_names if each.name.casefold() == pf_name.casefold())

    def covers(self, pf_name: str, index: int) -> bool:
        """Whether a VF of a PF that is selected is."""
        return not self.pf_names or any(each.has(index) for each in self.ranges(pf_name))


class Policy(msgspec.Struct, frozen=True, kw_only=True):
    """One policy. Of two for one PF, the one with the lower priority number counts. `mtu` 0 leaves it as it is."""

    name: str
    resource_name: str
    num_vfs: int
    nics: NicSelector
    node_selector: Mapping[str, str] = {}
    priority: int = 99
    mtu: int = 0
    device_type: str = "netdevice"
    rdma: bool = False
    need_vhost: bool = False
    link_type: str = ""
    switchdev: bool = False
    vdpa_type: str = ""
    exclude_topology: bool = False
    externally_managed: bool = False

    @property
    def userspace(self) -> bool:
        """Whether its VFs are for programs: bound to vfio-pci."""
        return self.device_type == VFIO

    def is_for(self, labels: Mapping[str, str]) -> bool:
        """Whether a node with these labels is meant."""
        return all(labels.get(key) == value for key, value in self.node_selector.items())


def parse_policies(documents: Sequence[object], *, where: str = "policies") -> tuple[Policy, ...]:
    """Policies out of objects as YAML or JSON gives them, with what holds between them checked.

    :raises ConfigError: whatever the objects are; it says all that is wrong with them.
    """
    policies: list[Policy] = []
    problems: list[str] = []
    for index, document in enumerate(documents):
        try:
            policies.append(parse_policy(document, where=f"policy {index + 1}"))
        except ConfigError as error:
            problems.append(str(error))
    problems += _between(policies)
    refuse(where, problems)
    return tuple(policies)


def parse_policy(document: object, *, where: str = "policy") -> Policy:
    """One policy.

    :raises ConfigError: whatever the object is.
    """
    top = Table(document, where, keys=("apiVersion", "kind", "metadata", "spec", "status"))
    if top.text("kind", KIND) != KIND:
        raise ConfigError(f"{where}: kind {quoted(top.text('kind'))} is not read here", hint=f"it must be {KIND}")
    version = top.text("apiVersion", f"{GROUP}/v1")
    if version != f"{GROUP}/v1":
        raise ConfigError(f"{where}: apiVersion {quoted(version)} is not read here", hint=f"it must be {GROUP}/v1")
    name = _metadata_name(top.get("metadata"), where)
    spec = Table(top.get("spec"), f"policy {name}", keys=_KEYS)
    policy = Policy(
        name=name,
        resource_name=check_name(spec.text("resourceName"), spec.place("resourceName")),
        num_vfs=_num_vfs(spec),
        nics=_nics(spec),
        node_selector=_labels(spec),
        priority=_or(spec.number("priority", 0, 99), 99),
        mtu=_or(spec.number("mtu", 0, _MOST), 0),
        device_type=spec.choice("deviceType", ("netdevice", VFIO), "netdevice"),
        rdma=spec.flag("isRdma"),
        need_vhost=spec.flag("needVhostNet"),
        link_type=_link_type(spec),
        switchdev=spec.choice("eSwitchMode", ("legacy", "switchdev"), "legacy") == "switchdev",
        vdpa_type=spec.choice("vdpaType", ("", "virtio", "vhost"), ""),
        exclude_topology=spec.flag("excludeTopology"),
        externally_managed=spec.flag("externallyManaged"),
    )
    _check(policy, spec)
    return policy


def _metadata_name(metadata: object, where: str) -> str:
    name = metadata.get("name") if isinstance(metadata, Mapping) else None
    if not isinstance(name, str) or not name:
        raise ConfigError(f"{where}: no metadata.name", hint="a policy is called by it in everything said about it")
    if not name.isascii() or not name.isprintable() or len(name) > 253:
        raise ConfigError(f"{where}: {quoted(name)} is no name of a Kubernetes object")
    return name


def _num_vfs(spec: Table) -> int:
    place = spec.place("numVfs")
    number = spec.number("numVfs", 0, _MOST)
    if not number:
        problem = "missing" if number is None else "0 makes no VFs"
        raise ConfigError(f"{place}: {problem}", hint="to have none, remove the policy and then the VFs")
    return number


def _nics(spec: Table) -> NicSelector:
    where = spec.place("nicSelector")
    table = Table(spec.get("nicSelector") or {}, where, keys=_NIC_KEYS)
    if table.text("netFilter"):
        raise ConfigError(
            f"{where}.netFilter: networks of OpenStack are not asked here",
            hint="name the NICs in pfNames or rootDevices",
        )
    selector = NicSelector(
        vendor=_id(table, "vendor"),
        device=_id(table, "deviceID"),
        root_devices=table.texts("rootDevices"),
        pf_names=tuple(_range(item, f"{where}.pfNames[{at}]") for at, item in enumerate(table.texts("pfNames"))),
    )
    if selector == NicSelector():
        raise ConfigError(f"{where}: selects no NIC", hint=f"at least one of {', '.join(_NIC_KEYS[:-1])}")
    return selector


def _range(text: str, where: str) -> Ranged:
    """As in config.json, but with exactly one first-last after the "#", as upstream's webhook has it."""
    ranged = parse_ranged(text, where)
    rest = text.partition("#")[2]
    if rest and ("," in rest or "-" not in rest):
        low, high = min(first for first, _ in ranged.spans), max(last for _, last in ranged.spans)
        raise ConfigError(
            f"{where}: {quoted(text)}: a policy takes exactly one range first-last",
            hint=f'did you mean "{ranged.name}#{low}-{high}"? Further ranges are further policies',
        )
    return ranged


def _id(table: Table, key: str) -> str:
    value = table.text(key)
    if value and not _HEX_ID.fullmatch(value):
        near = value.strip().lower().removeprefix("0x")
        hint = f'did you mean "{near}"?' if _HEX_ID.fullmatch(near) else "such as 8086; `multusctl devices` shows them"
        raise ConfigError(f"{table.place(key)}: {quoted(value)} is not four hex digits in lower case", hint=hint)
    return value


def _labels(spec: Table) -> dict[str, str]:
    value = spec.get("nodeSelector")
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise ConfigError(f"{spec.place('nodeSelector')}: {quoted(value)} where labels must stand")
    labels: dict[str, str] = {}
    for key, label in value.items():
        if not isinstance(key, str) or not isinstance(label, str):
            hint = 'write it in quotes: "true"' if isinstance(label, bool | int) else ""
            raise ConfigError(f"{spec.place('nodeSelector')}: a label {quoted(key)} that is no string", hint=hint)
        labels[key] = label
    return labels


def _link_type(spec: Table) -> str:
    """As sysfs-based selectors say it: ether or infiniband."""
    value = spec.text("linkType")
    if value and value.lower() not in ("eth", "ib"):
        raise ConfigError(f"{spec.place('linkType')}: {quoted(value)} is unknown: one of eth, ib")
    return {"eth": "ether", "ib": "infiniband"}.get(value.lower(), "")


def _check(policy: Policy, spec: Table) -> None:
    """Rules between the keys of one policy."""
    for ranged in policy.nics.pf_names:
        for low, high in ranged.spans:
            if high >= policy.num_vfs:
                near = f"{ranged.name}#{low}-{policy.num_vfs - 1}" if low < policy.num_vfs else ranged.name
                raise ConfigError(
                    f'{spec.where}: pfNames "{ranged}" goes beyond numVfs {policy.num_vfs}',
                    hint=f'VFs count from 0: did you mean "{near}"?',
                )
    if policy.nics.vendor == MELLANOX and policy.num_vfs > MELLANOX_MOST:
        raise ConfigError(f"{spec.where}: numVfs {policy.num_vfs}: Mellanox NICs have at most {MELLANOX_MOST}")
    bridge = spec.get("bridge")
    for wrong, problem, hint in (
        (policy.userspace and policy.rdma, f"isRdma with deviceType {VFIO}", "RDMA goes through the kernel's driver"),
        (
            policy.switchdev and policy.link_type == "infiniband",
            "switchdev is for Ethernet only",
            "eSwitchMode: legacy",
        ),
        (
            policy.vdpa_type and (policy.userspace or not policy.switchdev),
            "vdpaType without deviceType netdevice and eSwitchMode switchdev",
            "",
        ),
        (
            policy.vdpa_type and policy.nics.vendor not in ("", MELLANOX),
            "vdpaType on a NIC that is not Mellanox",
            f'vendor "{MELLANOX}"',
        ),
        (bridge and (not policy.switchdev or policy.externally_managed), "bridge needs switchdev, made here", ""),
        (bridge, "bridges of Open vSwitch are not made here", "make it beforehand, and leave the key out"),
        (
            policy.switchdev and not policy.externally_managed,
            "eSwitchMode switchdev is not set here",
            "set it with devlink, create the VFs, and say externallyManaged: true",
        ),
    ):
        if wrong:
            raise ConfigError(f"{spec.where}: {problem}", hint=hint)


def _between(policies: Sequence[Policy]) -> list[str]:
    """What is wrong with policies beside each other."""
    problems = []
    names: set[str] = set()
    by_resource: dict[str, Policy] = {}
    for at, policy in enumerate(policies):
        if policy.name in names:
            problems.append(f"policy {policy.name} is there twice")
        names.add(policy.name)
        first = by_resource.setdefault(policy.resource_name, policy)
        if first.exclude_topology != policy.exclude_topology:
            problems.append(
                f"policies {first.name} and {policy.name} both fill {policy.resource_name}, but differ in "
                "excludeTopology"
            )
        for other in policies[:at]:
            if _same_nodes(policy, other):
                problems += _overlaps(other, policy)
    return problems


def _same_nodes(one: Policy, other: Policy) -> bool:
    """Whether there can be a node that both are for."""
    return all(other.node_selector.get(key, value) == value for key, value in one.node_selector.items())


def _overlaps(one: Policy, other: Policy) -> Iterable[str]:
    for ranged in one.nics.pf_names:
        for second in other.nics.ranges(ranged.name):
            for low, high in ranged.spans:
                for first, last in second.spans:
                    if first <= high and low <= last:
                        yield (
                            f"policies {one.name} and {other.name} both want VFs {max(low, first)}-{min(high, last)} "
                            f"of {ranged.name}"
                        )


def _or(number: int | None, default: int) -> int:
    return default if number is None else number
