"""The device plugin's config.json. Pure.

Source: sriov-network-device-plugin 3.11. The file is read unmodified: what upstream ignores there warns here. Four
things of a pool are ours: "health" (what makes a device unhealthy), "preferred" (how a pod's devices are chosen),
"driver" (the one that a device is bound to when it is attached, so that its container is given the nodes of that), and
that a list may have several ranges of one PF.
"""

import re
from collections.abc import Mapping
from enum import StrEnum
from typing import Final

import msgspec

from devices.config import ConfigError, Table, decode_json, meant, nearest, quoted, refuse
from devices.kubelet.allocate import Preference
from devices.selectors import Candidate, DeviceType, Selector, parse_selectors

DEFAULT_PREFIX: Final = "intel.com"
PREFERRED: Final[tuple[Preference, ...]] = ("spread", "pack")
VFIO: Final = "vfio-pci"
DRIVERS: Final = (VFIO, "mlx5_core", "mlx4_core", "mana")
"""Drivers that DPDK programs work with and whose nodes are known before a device is bound."""

_KEYS: Final = (
    *("resourceName", "resourcePrefix", "deviceType", "selectors", "excludeTopology", "additionalInfo"),
    *("health", "preferred", "driver"),
)
_NAME = re.compile(r"[a-zA-Z0-9_-]+")
_QUALIFIED = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?")
_PREFIX = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_UNREAD: Final = {"ddp_profiles": "ddpProfiles", "pkeys": "pKeys", "vdpa_type": "vdpaType"}


class Health(StrEnum):
    """What makes a device unhealthy: its PF's link is down, it lost its driver, it is not there any more."""

    CARRIER = "carrier"
    DRIVER = "driver"
    PRESENCE = "presence"


class Pool(msgspec.Struct, frozen=True, kw_only=True):
    """One resource. `resource` is its name for pods, prefix/name; `driver` "" leaves devices on the one they have."""

    name: str
    prefix: str = DEFAULT_PREFIX
    kind: DeviceType = DeviceType.NET
    selectors: tuple[Selector, ...] = ()
    exclude_topology: bool = False
    additional: Mapping[str, Mapping[str, str]] = {}
    health: frozenset[Health] = frozenset(Health)
    preferred: Preference = "spread"
    driver: str = ""

    @property
    def resource(self) -> str:
        """prefix/name."""
        return f"{self.prefix}/{self.name}"

    def selects(self, device: Candidate) -> bool:
        """Whether any of the selectors does."""
        return any(selector.matches(device) for selector in self.selectors)

    def extra(self, bdf: str) -> dict[str, str]:
        """additionalInfo for a device: its own over everybody's."""
        return {**self.additional.get("*", {}), **self.additional.get(bdf, {})}

    def vhost(self, device: Candidate) -> bool:
        """Whether it is to be given with /dev/vhost-net."""
        return any(selector.need_vhost and selector.matches(device) for selector in self.selectors)


class PoolConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Pools in file order, and what is odd about the file."""

    pools: tuple[Pool, ...] = ()
    warnings: tuple[str, ...] = ()

    def pool(self, resource: str) -> Pool:
        """The pool of that resource.

        :raises ConfigError: there is none; the nearest one is named.
        """
        for each in self.pools:
            if each.resource == resource:
                return each
        known = {each.name: each.resource for each in self.pools} | {
            each.resource: each.resource for each in self.pools
        }
        near = known.get(resource.rpartition("/")[2]) or known.get(nearest(resource, known))
        others = f"one of {', '.join(sorted(set(known.values())))}" if known else "no pool is configured"
        hint = f'did you mean "{near}"?' if near else others
        raise ConfigError(f"no pool {quoted(resource)}", hint=hint)


def parse_config(data: bytes, *, where: str = "config.json", default_prefix: str = DEFAULT_PREFIX) -> PoolConfig:
    """The configuration.

    :raises ConfigError: whatever the bytes are; it says all that is wrong with them.
    """
    said: list[str] = []
    table = Table(decode_json(data, where), "", keys=("resourceList",), said=said)
    said = [f"{where}{each}" for each in said]
    listed = table.get("resourceList")
    if not isinstance(listed, list):
        hint = "; ".join(each.partition(": ")[2] for each in said)
        raise ConfigError(f'{where}: no list "resourceList"', hint=hint or 'it has {"resourceList": [...]}')
    pools: list[Pool] = []
    places: dict[str, str] = {}
    problems: list[str] = []
    for index, item in enumerate(listed):
        place = f"resourceList[{index}]"
        try:
            pool = _pool(item, place, default_prefix, said)
            if first := places.get(pool.resource):
                raise ConfigError(
                    f"{place}: {pool.resource} is already at {first}", hint='one pool takes a list of "selectors"'
                )
        except ConfigError as error:
            problems.append(str(error))
            continue
        places[pool.resource] = place
        if pool.selectors:
            pools.append(pool)
        else:
            said.append(f"{place}: {pool.resource} is left out: need at least one selector")
    refuse(where, problems)
    return PoolConfig(pools=tuple(pools), warnings=tuple(said))


def _pool(value: object, where: str, default_prefix: str, said: list[str]) -> Pool:
    table = Table(value, where, keys=_KEYS, said=said)
    kind = DeviceType(table.choice("deviceType", [str(each) for each in DeviceType], DeviceType.NET))
    selectors = table.get("selectors")
    pool = Pool(
        name=check_name(table.text("resourceName"), table.place("resourceName")),
        prefix=_check_prefix(table.text("resourcePrefix") or default_prefix, table.place("resourcePrefix")),
        kind=kind,
        selectors=() if selectors is None else parse_selectors(selectors, kind, table.place("selectors"), said),
        exclude_topology=table.flag("excludeTopology"),
        additional=_additional(table),
        health=_health(table),
        preferred=_preferred(table),
        driver=table.choice("driver", DRIVERS, "") if table.get("driver") else "",
    )
    for field, key in _UNREAD.items():
        if any(getattr(selector, field) for selector in pool.selectors):
            said.append(f"{where}: {key} is not read from devices here: what asks for it stays empty")
    if kind is DeviceType.AUXILIARY:
        said.append(f"{where}: auxiliary devices are not read here: the pool stays empty")
    return pool


def check_name(name: str, where: str) -> str:
    """A resource's name.

    :raises ConfigError: none that upstream or the kubelet takes, with one that is near.
    """
    if not name:
        raise ConfigError(f"{where}: missing", hint="it names the resource that pods ask for")
    if _NAME.fullmatch(name) and _QUALIFIED.fullmatch(name):
        return name
    near = re.sub(r"[^a-zA-Z0-9_-]", "_", name[:63]).strip("_-")
    problem = "letters, digits, - and _, at most 63, a letter or digit at both ends"
    if "/" in name:
        prefix, _, near = name.rpartition("/")
        problem = f'the part before the slash goes into "resourcePrefix": {quoted(prefix)}'
    hint = f"did you mean {quoted(near)}?" if _QUALIFIED.fullmatch(near) else ""
    raise ConfigError(f"{where}: {quoted(name)} cannot be a resource's name: {problem}", hint=hint)


def _check_prefix(prefix: str, where: str) -> str:
    if _PREFIX.fullmatch(prefix):
        return prefix
    near = prefix.strip().strip("/.").lower()
    hint = f"did you mean {quoted(near)}?" if _PREFIX.fullmatch(near) else "it is like a host's name: example.com"
    raise ConfigError(f"{where}: {quoted(prefix)} is no prefix that the kubelet takes", hint=hint)


def _additional(table: Table) -> dict[str, dict[str, str]]:
    value = table.get("additionalInfo")
    if value is None:
        return {}
    where = table.place("additionalInfo")
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: {quoted(value)} where an object must stand", hint='{"*": {"key": "value"}}')
    found: dict[str, dict[str, str]] = {}
    for bdf, info in value.items():
        place = f"{where}[{quoted(bdf)}]"
        if not isinstance(info, dict):
            raise ConfigError(f"{place}: {quoted(info)} where an object must stand", hint="keys and their strings")
        for key, item in info.items():
            if not isinstance(item, str):
                raise ConfigError(f"{place}: {quoted(key)} is {quoted(item)}, not a string")
        found[bdf] = dict(info)
    return found


def _health(table: Table) -> frozenset[Health]:
    if "health" not in table:
        return frozenset(Health)
    known = [str(each) for each in Health]
    values = table.texts("health")
    for value in values:
        if value not in known:
            raise ConfigError(f"{table.place('health')}: {quoted(value)} is unknown: {meant(value, known)}")
    return frozenset(Health(value) for value in values)


def _preferred(table: Table) -> Preference:
    chosen = table.choice("preferred", PREFERRED, PREFERRED[0])
    return next(each for each in PREFERRED if each == chosen)
