"""Capability arguments that a pod may ask for beside addresses: port mappings and bandwidth.

Written out as JSON, the structs are what plugins read in runtimeConfig.
"""

from typing import Annotated, TypeVar

import msgspec

from multus.cni import document
from multus.cni.document import Document, DocumentError
from multus.networks.addresses import ip_address
from multus.networks.errors import NetworkError

T = TypeVar("T")
D = TypeVar("D")

Port = Annotated[int, msgspec.Meta(ge=0, le=65535)]
Rate = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]  # bits per second, or bits; Go's int


class PortMapping(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """The "portMappings" capability: a port of the node that leads to one of the pod."""

    host_port: Port
    container_port: Port
    protocol: str = ""
    host_ip: str = msgspec.field(default="", name="hostIP")


class Bandwidth(msgspec.Struct, frozen=True, kw_only=True, rename="camel"):
    """The "bandwidth" capability: rates in bits per second, bursts in bits."""

    ingress_rate: Rate = 0
    ingress_burst: Rate = 0
    egress_rate: Rate = 0
    egress_burst: Rate = 0


def field(body: Document, key: str, kind: type[T], default: D) -> T | D:
    """A member of that type; `default` when it is absent or null.

    :raises DocumentError: when it is something else.
    """
    raw = document.member(body, key)
    if raw is None:
        return default
    try:
        return document.value(raw, kind)
    except DocumentError as error:
        raise DocumentError(f'"{key}": {error}') from None


def port_mappings(selection: Document) -> tuple[PortMapping, ...]:
    """The "portMappings" of a selection, in order.

    :raises DocumentError: not of their type. :raises NetworkError: a hostIP that is none.
    """
    return tuple(_port_mapping(each) for each in field(selection, "portMappings", list[msgspec.Raw], []))


def bandwidth(selection: Document) -> Bandwidth | None:
    """The "bandwidth" of a selection, None when it has none.

    :raises DocumentError: not of its type.
    """
    raw = document.member(selection, "bandwidth")
    if raw is None:
        return None
    try:
        body = document.decode(bytes(raw))
    except DocumentError as error:
        raise DocumentError(f'"bandwidth": {error}') from None
    return Bandwidth(
        ingress_rate=field(body, "ingressRate", Rate, 0),
        ingress_burst=field(body, "ingressBurst", Rate, 0),
        egress_rate=field(body, "egressRate", Rate, 0),
        egress_burst=field(body, "egressBurst", Rate, 0),
    )


def _port_mapping(raw: msgspec.Raw) -> PortMapping:
    try:
        body = document.decode(bytes(raw))
    except DocumentError as error:
        raise DocumentError(f'"portMappings": {error}') from None
    host_ip = field(body, "hostIP", str, "")
    if host_ip and ip_address(host_ip) is None:
        raise NetworkError(f'"portMappings": "hostIP" is {host_ip[:60]!a}', hint="it must be an IP address")
    return PortMapping(
        host_port=field(body, "hostPort", Port, 0),
        container_port=field(body, "containerPort", Port, 0),
        protocol=field(body, "protocol", str, ""),
        host_ip=host_ip,
    )
