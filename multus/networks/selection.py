"""What a pod asks for in its network annotations, in both of their forms, checked so that nothing later doubts it.

Source: Network Custom Resource Definition De-facto Standard 1.3, section 4.1, and multus-cni's pkg/k8sclient, whose
wording errors keep. Keys match as in `multus.cni.document`, and unknown ones are let pass, both as upstream has it.
What upstream passes on to fail later fails here: a null or a name in the list that is empty, a name or an interface
name that nothing can have.
"""

import re
from collections.abc import Sequence
from typing import Any

import msgspec

from multus.cni import document
from multus.cni.document import Document, DocumentError
from multus.cni.request import check_ifname
from multus.networks.addresses import check_address, check_guid, check_mac, gateway_address
from multus.networks.capabilities import Bandwidth, PortMapping, bandwidth, field, port_mappings
from multus.networks.errors import NetworkError

__all__ = [
    "MAX_SELECTIONS",
    "Bandwidth",
    "PortMapping",
    "Selection",
    "check_attributes",
    "parse_default_network",
    "parse_selections",
]

MAX_SELECTIONS = 256
"""Networks of one pod: an annotation could hold 30,000, each of them a lookup and a plugin's process."""

_JSON = re.compile(r'[\[{"]')
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """One network that a pod asks for. What it does not ask for is empty.

    `ips` are addresses with or without a prefix length, as given. `default_route` is None when the key is absent, and
    empty for `[]`, which asks for no default route. `container` says which container's device the network gets.
    """

    namespace: str
    name: str
    ifname: str = ""
    ips: tuple[str, ...] = ()
    mac: str = ""
    infiniband_guid: str = ""
    port_mappings: tuple[PortMapping, ...] = ()
    bandwidth: Bandwidth | None = None
    device_id: str = ""
    container: str = ""
    cni_args: dict[str, msgspec.Raw] = {}
    default_route: tuple[str, ...] | None = None

    def capabilities(self) -> dict[str, Any]:
        """What is asked for as capability arguments, in plain JSON types, as they are read back from storage."""
        asked: dict[str, Any] = {
            "portMappings": [msgspec.to_builtins(each) for each in self.port_mappings],
            "bandwidth": msgspec.to_builtins(self.bandwidth),
            "ips": list(self.ips),
            "mac": self.mac,
            "infinibandGUID": self.infiniband_guid,
        }
        return {name: value for name, value in asked.items() if value}


def parse_selections(text: str, namespace: str) -> tuple[Selection, ...]:
    """The networks of a `k8s.v1.cni.cncf.io/networks` annotation, in order; none for one that is empty or blank.

    `namespace` is where networks without one of their own are.

    :raises NetworkError: whatever the text is.
    """
    if not text.strip():
        return ()
    if _JSON.search(text):
        return _from_json(text, namespace)
    items = text.split(",", MAX_SELECTIONS)
    _check_number(len(items))
    return tuple(_from_item(item, namespace) for item in items)


def parse_default_network(text: str, namespace: str) -> Selection:
    """The one network of a `v1.multus-cni.io/default-network` annotation.

    :raises NetworkError: whatever the text is, and for none or several.
    """
    selections = parse_selections(text, namespace)
    if len(selections) > 1:
        raise NetworkError(
            "more than one default network is specified",
            hint="further networks belong into the annotation k8s.v1.cni.cncf.io/networks",
        )
    if not selections:
        raise NetworkError("no default network is specified", hint="name one, or remove the annotation")
    return selections[0]


def check_attributes(mac: str, ips: Sequence[str]) -> tuple[str, tuple[str, ...]]:
    """The MAC ("" for none) and the addresses that one interface is to have, as they came.

    :raises NetworkError: for what is none.
    """
    if mac:
        check_mac(mac)
    for ip in ips:
        check_address(ip)
    return mac, tuple(ips)


def _from_item(item: str, namespace: str) -> Selection:
    """`[namespace/]name[@interface]`, blanks around each of them allowed."""
    parts = item.strip().split("/")
    if len(parts) > 2:
        raise _malformed("/", item)
    own, rest = (parts[0].strip(), parts[1]) if len(parts) == 2 else ("", parts[0])
    name, *interface = (part.strip() for part in rest.split("@"))
    if len(interface) > 1:
        raise _malformed("@", item)
    return Selection(
        namespace=_namespace(own) or namespace, name=_name(name), ifname=_ifname(interface[0] if interface else "")
    )


def _malformed(at: str, item: str) -> NetworkError:
    return NetworkError(
        f"parsePodNetworkObjectName: Invalid network object (failed at '{at}')",
        hint=f"{item.strip()[:80]!a} is not of the form namespace/name@interface",
    )


def _from_json(text: str, namespace: str) -> tuple[Selection, ...]:
    what = "failed to parse pod Network Attachment Selection Annotation JSON format"
    try:
        elements = document.value(text.encode(), list[msgspec.Raw])
    except (DocumentError, UnicodeEncodeError) as error:
        raise NetworkError(
            f"{what}: {error}", hint="a JSON list of objects, or names with commas between them"
        ) from None
    _check_number(len(elements))
    selections = []
    for index, element in enumerate(elements):
        try:
            selections.append(_from_element(document.decode(bytes(element)), namespace))
        except DocumentError as error:
            raise NetworkError(f"{what}: network {index + 1} of the list: {error}") from None
        except NetworkError as error:
            raise NetworkError(f"network {index + 1} of the list: {error.message}", hint=error.hint) from None
    return tuple(selections)


def _from_element(body: Document, namespace: str) -> Selection:
    mac, ips = check_attributes(field(body, "mac", str, ""), field(body, "ips", tuple[str, ...], ()))
    guid = field(body, "infiniband-guid", str, "")
    if guid:
        check_guid(guid)
    ifname = field(body, "interface", str, "") or field(body, "interfaceRequest", str, "")  # as it was before 3.2
    routes = field(body, "default-route", list[str], None)
    return Selection(
        namespace=_namespace(field(body, "namespace", str, "")) or namespace,
        name=_name(field(body, "name", str, "")),
        ifname=_ifname(ifname),
        ips=ips,
        mac=mac,
        infiniband_guid=guid,
        port_mappings=port_mappings(body),
        bandwidth=bandwidth(body),
        device_id=field(body, "deviceID", str, ""),
        container=field(body, "container", str, ""),
        cni_args=_cni_args(body),
        default_route=None if routes is None else tuple(gateway_address(route) for route in routes),
    )


def _cni_args(top: Document) -> dict[str, msgspec.Raw]:
    raw = document.member(top, "cni-args")
    if raw is None:
        return {}
    field(top, "cni-args", dict, {})  # in full: what a plugin could not read must not get as far as the plugin
    return document.decode(bytes(raw))


def _namespace(text: str) -> str:
    if text and not _LABEL.fullmatch(text):
        raise _mismatch(text, "a namespace")
    return text


def _name(text: str) -> str:
    if not text:
        raise NetworkError("a network without a name", hint='is there a comma too many, or an object without "name"?')
    if not _SUBDOMAIN.fullmatch(text):
        raise _mismatch(text, "a NetworkAttachmentDefinition")
    return text


def _mismatch(text: str, what: str) -> NetworkError:
    return NetworkError(
        "Failed to parse: one or more items did not match comma-delimited format (must consist of lower case "
        f"alphanumeric characters). Must start and end with an alphanumeric character), mismatch @ {text[:80]!a}",
        hint=f"no name of {what} looks like this",
    )


def _ifname(text: str) -> str:
    if text and (problem := check_ifname(text)):
        raise NetworkError(
            "Failed to parse interface name: must be less than 15 chars and not contain '/' or spaces. "
            f"interface name {text[:80]!a}",
            hint=problem,
        )
    return text


def _check_number(number: int) -> None:
    if number > MAX_SELECTIONS:
        raise NetworkError(f"more than {MAX_SELECTIONS} networks", hint="no pod can have so many interfaces")
