"""Configuration, pod, networks and devices become an ordered plan, and all that can be refused is refused here.

Positions follow the annotation: 0 is the cluster's default network, then `defaultNetworks`, then the pod's own, then
the auxiliary chain. Interface names, device order, dependencies and results derive from positions, never from timing.
"""

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from multus import devinfo
from multus.cni.conf import NetworkConf, encode_conf, masters, with_cni_args, with_device
from multus.cni.request import PodRef, delegate_args
from multus.errors import Fault, MultusError
from multus.networks.devices import DeviceShare
from multus.networks.errors import NetworkError
from multus.networks.gateways import GatewayDecision, decide_gateways
from multus.networks.selection import Selection
from multus.sandbox import Attachment


class Origin(StrEnum):
    """Who asked for a network."""

    DEFAULT = "cluster default"
    OVERRIDE = "default-network annotation"
    DELEGATE = "delegates"
    CLUSTER_WIDE = "defaultNetworks"
    POD = "networks annotation"
    AUXILIARY = "auxiliary chain"


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """One network that was asked for: found (`conf`), or not (`refusal`).

    `found` says where the configuration came from, `resource` is the device resource that the network's pods are given.
    """

    origin: Origin
    network: str
    conf: NetworkConf | None = None
    found: str = ""
    resource: str = ""
    selection: Selection | None = None
    refusal: str = ""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One attachment to be: its journal record, its configuration, and what happens to its default routes."""

    attachment: Attachment
    conf: NetworkConf
    origin: Origin
    found: str
    gateways: GatewayDecision


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """What an ADD will do, in order of position, or why it will not."""

    attachments: tuple[Planned, ...]
    refusals: tuple[str, ...] = ()

    def refuse(self) -> None:
        """Raise when anything in the plan was refused.

        :raises PlanError: with every refusal.
        """
        if self.refusals:
            raise PlanError("; ".join(self.refusals))


class PlanError(MultusError):
    """The pod's networks cannot be attached as asked."""

    fault: ClassVar[Fault] = Fault.OPERATOR


def make_plan(
    wanted: Sequence[Wanted],
    *,
    container_id: str,
    ifname: str,
    pod: PodRef | None,
    runtime_args: tuple[tuple[str, str], ...] = (),
    runtime: dict[str, Any] | None = None,
    devices: DeviceShare,
    sequential: bool = False,
) -> Plan:
    """The plan for one ADD. `runtime` is what the container runtime gave as runtimeConfig; `ifname` its CNI_IFNAME."""
    refusals = [f"network {want.network!r} ({want.origin}): {want.refusal}" for want in wanted if want.refusal]
    names, name_refusals = _interface_names(wanted, ifname)
    refusals += name_refusals
    gateways, gateway_refusals = _gateways(wanted)
    refusals += gateway_refusals
    planned: list[Planned] = []
    for position, want in enumerate(wanted):
        if want.conf is None:
            continue
        try:
            conf, device_id = _with_selection(want, devices)
        except MultusError as error:
            refusals.append(f"network {want.network!r} ({want.origin}): {error}")
            continue
        info = devinfo.cni_file_name(want.network, container_id, names[position]) if device_id else ""
        selection = want.selection
        attachment = Attachment(
            position=position,
            network=want.network,
            ifname=names[position],
            conf=encode_conf(conf),
            args=delegate_args(
                pod,
                runtime_args,
                mac=selection.mac if selection else "",
                ips=selection.ips if selection else (),
            ),
            runtime=_capabilities(want, position, runtime or {}, device_id, info),
            device_id=device_id if want.resource else "",
            resource=want.resource,
            default=position == 0,
            device_info=info,
        )
        planned.append(
            Planned(attachment=attachment, conf=conf, origin=want.origin, found=want.found, gateways=gateways[position])
        )
    return Plan(attachments=_ordered(planned, sequential=sequential), refusals=tuple(refusals))


def _interface_names(wanted: Sequence[Wanted], ifname: str) -> tuple[list[str], list[str]]:
    names: list[str] = []
    refusals: list[str] = []
    for position, want in enumerate(wanted):
        asked = want.selection.ifname if want.selection else ""
        name = asked or (ifname if position == 0 else f"net{position}")
        if name in names:
            other = names.index(name)
            refusals.append(
                f"network {want.network!r} ({want.origin}) would be interface {name!r}, which "
                f"{wanted[other].network!r} ({wanted[other].origin}) already is: ask for another interface name"
            )
        names.append(name)
    return names, refusals


def _gateways(wanted: Sequence[Wanted]) -> tuple[list[GatewayDecision], list[str]]:
    requests = [want.selection.default_route if want.selection else None for want in wanted]
    try:
        return list(decide_gateways(requests)), []
    except NetworkError as error:
        return [GatewayDecision() for _ in wanted], [str(error)]


def _with_selection(want: Wanted, devices: DeviceShare) -> tuple[NetworkConf, str]:
    conf, selection = want.conf, want.selection
    assert conf is not None
    device_id = selection.device_id if selection else ""
    if want.resource:
        device_id = devices.take(
            want.resource,
            network=want.network,
            device_id=device_id,
            container=selection.container if selection else "",
        )
        conf = with_device(conf, device_id)
    if selection and selection.cni_args:
        conf = with_cni_args(conf, selection.cni_args)
    return conf, device_id


def _capabilities(
    want: Wanted, position: int, runtime: dict[str, Any], device_id: str, device_info: str
) -> dict[str, Any]:
    """Capability arguments: the runtime's own, and for any network but the default one what the selection asks for."""
    capabilities = dict(runtime)
    selection = want.selection
    if selection is not None and position > 0:
        asked: dict[str, Any] = {
            "portMappings": list(selection.port_mappings),
            "bandwidth": selection.bandwidth,
            "ips": list(selection.ips),
            "mac": selection.mac,
            "infinibandGUID": selection.infiniband_guid,
        }
        capabilities |= {key: msgspec.to_builtins(value) for key, value in asked.items() if value}
    if device_id and position > 0:
        capabilities["deviceID"] = device_id
        if device_info:
            capabilities["CNIDeviceInfoFile"] = str(devinfo.CNI_DIRECTORY) + "/" + device_info
    return capabilities


def _ordered(planned: list[Planned], *, sequential: bool) -> tuple[Planned, ...]:
    """Say for each attachment which positions it waits for.

    All wait for the default network; the auxiliary chain waits for all. One whose conf names another's interface as
    its master waits for that one, unless that would close a circle.
    """
    by_ifname = {item.attachment.ifname: item.attachment.position for item in planned}
    waits: dict[int, set[int]] = {}
    for item in planned:
        position = item.attachment.position
        before = {other.attachment.position for other in planned if other.attachment.position < position}
        if sequential or item.origin is Origin.AUXILIARY:
            waits[position] = before
            continue
        waits[position] = before & {0}
        for name in masters(item.conf):
            master = by_ifname.get(name)
            if master is None or master == position or position == 0 or _reaches(waits, master, position):
                continue
            waits[position].add(master)
    return tuple(
        msgspec.structs.replace(
            item,
            attachment=msgspec.structs.replace(item.attachment, after=tuple(sorted(waits[item.attachment.position]))),
        )
        for item in planned
    )


def _reaches(waits: dict[int, set[int]], start: int, goal: int) -> bool:
    """Whether `start` already waits, directly or not, for `goal`."""
    seen: set[int] = set()
    todo = [start]
    while todo:
        position = todo.pop()
        if position == goal:
            return True
        if position not in seen:
            seen.add(position)
            todo.extend(waits.get(position, ()))
    return False
