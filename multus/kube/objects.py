"""Pods and NetworkAttachmentDefinitions: the little of them that is needed here, and reading it out of JSON. Pure.

A watch of a node's pods keeps these in memory, so nothing else of an object is decoded at all.
"""

from typing import Any, Final, TypeVar

import msgspec

from multus.kube.limits import Limits, limits_of

DEFAULT_NETWORK: Final = "v1.multus-cni.io/default-network"
NETWORKS: Final = "k8s.v1.cni.cncf.io/networks"
NETWORK_STATUS: Final = "k8s.v1.cni.cncf.io/network-status"
RESOURCE_NAME: Final = "k8s.v1.cni.cncf.io/resourceName"
_CONFIG_SOURCE: Final = "kubernetes.io/config.source"
_CONFIG_HASH: Final = "kubernetes.io/config.hash"
_FROM_API: Final = "api"


class ClaimUse(msgspec.Struct, frozen=True, kw_only=True):
    """A container that uses a claim; `request` is the one request of the claim that it uses, "" for all of them."""

    container: str
    request: str = ""


class PodClaim(msgspec.Struct, frozen=True, kw_only=True):
    """A ResourceClaim of a pod: the claim object's name, and who uses it, in the order of the containers."""

    claim: str
    uses: tuple[ClaimUse, ...] = ()


class RequestMapping(msgspec.Struct, frozen=True, kw_only=True):
    """Which request of a claim stands for a container's extended resource."""

    container: str
    resource: str
    request: str


class ExtendedClaim(msgspec.Struct, frozen=True, kw_only=True):
    """The claim that the scheduler made for a pod's extended resources."""

    claim: str
    mappings: tuple[RequestMapping, ...] = ()


class Pod(msgspec.Struct, frozen=True, kw_only=True):
    """A pod. `networks` and `default_network` are annotations as written, "" when absent or empty.

    `status` is the network-status annotation as last seen, None when there was none. `static`: the kubelet read the
    pod from elsewhere than the API server, which knows only its mirror, under another uid; `mirrors` is then the uid
    that the kubelet and the runtime know. `containers` are the names of all containers, those that run first being
    first; `limits` has those of them that ask for hugepages or devices.
    """

    namespace: str
    name: str
    uid: str = ""
    node: str = ""
    networks: str = ""
    default_network: str = ""
    status: str | None = None
    static: bool = False
    mirrors: str = ""
    host_network: bool = False
    containers: tuple[str, ...] = ()
    claims: tuple[PodClaim, ...] = ()
    extended: ExtendedClaim | None = None
    limits: tuple[Limits, ...] = ()


class NAD(msgspec.Struct, frozen=True, kw_only=True):
    """A NetworkAttachmentDefinition; `config` is spec.config as written, `resource` the resourceName annotation."""

    namespace: str
    name: str
    uid: str = ""
    config: str = ""
    resource: str = ""


# What Go's encoder leaves out or writes as null is None here, and so is what a person writes as `key:` in YAML.


class _Annotations(msgspec.Struct):
    networks: str | None = msgspec.field(name=NETWORKS, default=None)
    default_network: str | None = msgspec.field(name=DEFAULT_NETWORK, default=None)
    status: str | None = msgspec.field(name=NETWORK_STATUS, default=None)
    resource: str | None = msgspec.field(name=RESOURCE_NAME, default=None)
    source: str | None = msgspec.field(name=_CONFIG_SOURCE, default=None)
    hash: str | None = msgspec.field(name=_CONFIG_HASH, default=None)


class _Metadata(msgspec.Struct):
    name: str
    namespace: str
    uid: str | None = None
    annotations: _Annotations | None = None


class _ContainerClaim(msgspec.Struct):
    name: str
    request: str | None = None


class _Resources(msgspec.Struct):
    claims: list[_ContainerClaim] | None = None
    limits: Any = None


class _Container(msgspec.Struct, rename="camel"):
    name: str
    resources: _Resources | None = None
    security_context: Any = None


class _SpecClaim(msgspec.Struct, rename="camel"):
    name: str
    resource_claim_name: str | None = None


class _PodSpec(msgspec.Struct, rename="camel"):
    node_name: str | None = None
    host_network: bool | None = None
    init_containers: list[_Container] | None = None
    containers: list[_Container] | None = None
    resource_claims: list[_SpecClaim] | None = None


class _Mapping(msgspec.Struct, rename="camel"):
    container_name: str
    resource_name: str
    request_name: str


class _Extended(msgspec.Struct, rename="camel"):
    resource_claim_name: str
    request_mappings: list[_Mapping] | None = None


class _PodStatus(msgspec.Struct, rename="camel"):
    resource_claim_statuses: list[_SpecClaim] | None = None
    extended_resource_claim_status: _Extended | None = None


class _Pod(msgspec.Struct):
    metadata: _Metadata
    spec: _PodSpec | None = None
    status: _PodStatus | None = None


class _NADSpec(msgspec.Struct):
    config: str | None = None


class _NAD(msgspec.Struct):
    metadata: _Metadata
    spec: _NADSpec | None = None


_POD = msgspec.json.Decoder(_Pod)
_NAD_DECODER = msgspec.json.Decoder(_NAD)
_W = TypeVar("_W", _Pod, _NAD)


def decode_pod(data: bytes) -> Pod:
    """Read a v1 Pod.

    :raises ValueError: not JSON, or a field that is needed has another type than Kubernetes gives it.
    """
    wire = _decode(_POD, data)
    metadata, spec, status = wire.metadata, wire.spec or _PodSpec(), wire.status or _PodStatus()
    annotations = metadata.annotations or _Annotations()
    static = bool(annotations.source) and annotations.source != _FROM_API
    containers = [*(spec.init_containers or ()), *(spec.containers or ())]
    return Pod(
        namespace=metadata.namespace,
        name=metadata.name,
        uid=metadata.uid or "",
        node=spec.node_name or "",
        networks=annotations.networks or "",
        default_network=annotations.default_network or "",
        status=annotations.status,
        static=static,
        mirrors=(annotations.hash or "") if static else "",
        host_network=bool(spec.host_network),
        containers=tuple(container.name for container in containers),
        claims=_claims(containers, spec, status),
        extended=_extended(status.extended_resource_claim_status),
        limits=_limits(containers),
    )


def decode_nad(data: bytes) -> NAD:
    """Read a NetworkAttachmentDefinition.

    :raises ValueError: not JSON, or a field that is needed has another type than its definition gives it.
    """
    wire = _decode(_NAD_DECODER, data)
    annotations = wire.metadata.annotations or _Annotations()
    return NAD(
        namespace=wire.metadata.namespace,
        name=wire.metadata.name,
        uid=wire.metadata.uid or "",
        config=(wire.spec.config if wire.spec else None) or "",
        resource=annotations.resource or "",
    )


def _decode(decoder: "msgspec.json.Decoder[_W]", data: bytes) -> _W:
    try:
        wire = decoder.decode(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not wire.metadata.name or not wire.metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    return wire


def _claims(containers: list[_Container], spec: _PodSpec, status: _PodStatus) -> tuple[PodClaim, ...]:
    """The pod's claims in the order of its spec.

    A claim that the pod names itself stands in the spec only; one made from a template has its name in the status.
    """
    generated = {each.name: each.resource_claim_name for each in status.resource_claim_statuses or ()}
    names = {each.name: each.resource_claim_name for each in spec.resource_claims or ()}
    found = []
    # A status without its spec is not what Kubernetes writes, but upstream reads the status alone.
    for name in [*names, *(name for name in generated if name not in names)]:
        claim = names.get(name) or generated.get(name)
        if not claim:
            continue  # a template that needed no claim
        uses = tuple(
            ClaimUse(container=container.name, request=use.request or "")
            for container in containers
            if container.resources is not None
            for use in container.resources.claims or ()
            if use.name == name
        )
        found.append(PodClaim(claim=claim, uses=uses))
    return tuple(found)


def _limits(containers: list[_Container]) -> tuple[Limits, ...]:
    read = (
        limits_of(each.name, each.resources.limits, each.security_context)
        for each in containers
        if each.resources is not None
    )
    return tuple(each for each in read if each is not None)


def _extended(wire: _Extended | None) -> ExtendedClaim | None:
    if wire is None:
        return None
    mappings = tuple(
        RequestMapping(container=each.container_name, resource=each.resource_name, request=each.request_name)
        for each in wire.request_mappings or ()
    )
    return ExtendedClaim(claim=wire.resource_claim_name, mappings=mappings)
