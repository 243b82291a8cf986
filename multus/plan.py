"""Configuration, pod, networks and devices become an ordered plan, and all that can be refused is refused here.

Positions follow the annotation: 0 is the cluster's default network, then `defaultNetworks`, then the pod's own, then
the auxiliary chain. Interface names, device order, dependencies and results derive from positions, never from timing.
"""

from collections.abc import Mapping, Sequence
from enum import StrEnum
from typing import Any, ClassVar

import msgspec

from multus import devinfo
from multus.cni.args import Pairs
from multus.cni.conf import NetworkConf, encode_conf, masters, with_cni_args, with_device
from multus.cni.request import PodRef, delegate_args
from multus.errors import Fault, MultusError
from multus.networks.devices import DeviceShare
from multus.networks.errors import NetworkError
from multus.networks.gateways import GatewayDecision, decide_gateways
from multus.networks.order import Node, order
from multus.networks.selection import Selection
from multus.sandbox import Attachment

# Arguments (CNI_ARGS, capabilities) that the runtime means for the interface it asks for: on two they would clash.
_ONE_INTERFACE = frozenset({"MAC", "IP", "ips", "mac", "infinibandGUID", "deviceID", "CNIDeviceInfoFile"})


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
    runtime_args: Pairs = (),
    runtime: Mapping[str, Any] | None = None,
    devices: DeviceShare,
    sequential: bool = False,
    device_info_dir: str = "/var/run/k8s.cni.cncf.io/devinfo",
    tolerant: bool = False,
) -> Plan:
    """The plan for one ADD. `runtime` is what the container runtime gave as runtimeConfig; `ifname` its CNI_IFNAME.

    `tolerant` is for a DEL: a network whose device is not known any more is deleted without being told which it was.
    """
    refusals = [f"{_title(want)}: {_refusal(want)}" for want in wanted if _refusal(want)]
    names, name_refusals = _interface_names(wanted, ifname)
    refusals += name_refusals
    gateways, gateway_refusals = _gateways(wanted)
    refusals += gateway_refusals
    chosen, device_refusals = _devices(wanted, devices)
    if not tolerant:
        refusals += device_refusals.values()
    planned: list[Planned] = []
    for position, want in enumerate(wanted):
        if want.conf is None or _refusal(want) or (position in device_refusals and not tolerant):
            continue
        device_id = chosen.get(position, "")
        try:
            conf = _with_selection(want.conf, want, device_id)
        except MultusError as error:
            refusals.append(f"{_title(want)}: {error}")
            continue
        info = devinfo.cni_file_name(want.network, container_id, names[position]) if device_id else ""
        attachment = Attachment(
            position=position,
            network=want.network,
            ifname=names[position],
            conf=encode_conf(conf),
            args=_args(want, position, pod, runtime_args),
            runtime=_capabilities(want, position, runtime or {}, device_id, f"{device_info_dir}/cni/{info}"),
            device_id=device_id if want.resource else "",
            resource=want.resource,
            default=position == 0,
            device_info=info,
        )
        planned.append(
            Planned(attachment=attachment, conf=conf, origin=want.origin, found=want.found, gateways=gateways[position])
        )
    return Plan(attachments=_ordered(planned, sequential=sequential), refusals=tuple(refusals))


def _title(want: Wanted) -> str:
    return f"network {want.network!r} ({want.origin})"


def _refusal(want: Wanted) -> str:
    if want.refusal or want.conf is None:
        return want.refusal or "there is no configuration for it"
    return "" if want.conf.name else f"the configuration has no name ({want.found})"


def _interface_names(wanted: Sequence[Wanted], ifname: str) -> tuple[list[str], list[str]]:
    names: list[str] = []
    refusals: list[str] = []
    for position, want in enumerate(wanted):
        asked = want.selection.ifname if want.selection else ""
        name = asked or (ifname if position == 0 else f"net{position}")
        if name in names:
            other = names.index(name)
            refusals.append(
                f"{_title(want)} would be interface {name!r}, which "
                f"{wanted[other].network!r} ({wanted[other].origin}) already is: ask for another interface name"
            )
        names.append(name)
    return names, refusals


def _gateways(wanted: Sequence[Wanted]) -> tuple[list[GatewayDecision], list[str]]:
    requests = [want.selection.default_route if want.selection else None for want in wanted]
    try:
        decisions = decide_gateways(requests)
    except NetworkError as error:
        return [GatewayDecision() for _ in wanted], [str(error)]
    makes = [want.origin is not Origin.AUXILIARY for want in wanted]  # an interface, and so routes that it could lose
    return [each if made else GatewayDecision() for each, made in zip(decisions, makes, strict=True)], []


def _devices(wanted: Sequence[Wanted], share: DeviceShare) -> tuple[dict[int, str], dict[int, str]]:
    """Device and refusal by position. Who asks for a certain device, or a certain container's, chooses first.

    Without a resource, the device is what the selection says; the default network is told of none in that way.
    """
    chosen: dict[int, str] = {}
    refusals: dict[int, str] = {}
    for position in sorted(range(len(wanted)), key=lambda index: _freedom(wanted[index])):
        want = wanted[position]
        selection = want.selection
        device_id = selection.device_id if selection else ""
        if want.conf is None or not want.resource:
            if device_id and position > 0:
                chosen[position] = device_id
            continue
        container = selection.container if selection else ""
        try:
            chosen[position] = share.take(want.resource, network=want.network, device_id=device_id, container=container)
        except NetworkError as error:
            refusals[position] = f"{_title(want)}: {error}"
    return chosen, dict(sorted(refusals.items()))


def _freedom(want: Wanted) -> int:
    if want.selection is None:
        return 2
    return 0 if want.selection.device_id else 1 if want.selection.container else 2


def _with_selection(conf: NetworkConf, want: Wanted, device_id: str) -> NetworkConf:
    if want.resource and device_id:
        conf = with_device(conf, device_id)
    if want.selection and want.selection.cni_args:
        conf = with_cni_args(conf, want.selection.cni_args)
    return conf


def _args(want: Wanted, position: int, pod: PodRef | None, runtime_args: Pairs) -> Pairs:
    mac, ips = (want.selection.mac, want.selection.ips) if want.selection else ("", ())
    given = runtime_args if position == 0 else tuple(pair for pair in runtime_args if pair[0] not in _ONE_INTERFACE)
    return delegate_args(pod, given, mac=mac, ips=ips)


def _capabilities(
    want: Wanted, position: int, runtime: Mapping[str, Any], device_id: str, info_file: str
) -> dict[str, Any]:
    """Capability arguments: the runtime's own, and for any network but the default one what the selection asks for."""
    if position == 0:
        return dict(runtime)
    capabilities = {key: value for key, value in runtime.items() if key not in _ONE_INTERFACE}
    if want.selection:
        capabilities |= want.selection.capabilities()
    if device_id:
        capabilities |= {"deviceID": device_id, "CNIDeviceInfoFile": info_file}
    return capabilities


def _ordered(planned: Sequence[Planned], *, sequential: bool) -> tuple[Planned, ...]:
    nodes = [
        Node(
            position=item.attachment.position,
            ifname=item.attachment.ifname,
            masters=masters(item.conf),
            last=item.origin is Origin.AUXILIARY,
        )
        for item in planned
    ]
    waits = order(nodes, sequential=sequential)
    return tuple(
        msgspec.structs.replace(
            item, attachment=msgspec.structs.replace(item.attachment, after=waits[item.attachment.position])
        )
        for item in planned
    )
