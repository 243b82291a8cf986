"""Dynamic Resource Allocation (resource.k8s.io/v1): which devices a claim was given, and what they are called here.

A driver whose devices go to networks gives each of them two string attributes: the network resource that it belongs to,
and the device id that the CNI plugin is told.
"""

from typing import Final, Protocol, TypeVar

import msgspec

DEVICE_ID: Final = "k8s.cni.cncf.io/deviceID"
RESOURCE: Final = "k8s.cni.cncf.io/resourceName"


class AllocatedDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device of a claim, by driver, pool and name; `request` may name a subrequest too: `nic/fast`."""

    request: str
    driver: str
    pool: str
    device: str


class Claim(msgspec.Struct, frozen=True, kw_only=True):
    """A ResourceClaim; `allocated` is None while nothing was allocated to it."""

    namespace: str
    name: str
    uid: str = ""
    allocated: tuple[AllocatedDevice, ...] | None = None


class SliceDevice(msgspec.Struct, frozen=True, kw_only=True):
    """One device that a driver offers; the two attributes are "" when absent or not strings."""

    name: str
    device_id: str = ""
    resource: str = ""


class Slice(msgspec.Struct, frozen=True, kw_only=True):
    """A part of a driver's pool. Only the slices of a pool's highest generation count."""

    name: str
    driver: str
    pool: str
    generation: int = 0
    devices: tuple[SliceDevice, ...] = ()


class Claims(Protocol):
    """Where claims and slices are read; always as of now."""

    async def claim(self, namespace: str, name: str) -> Claim:
        """One claim.

        :raises NotFoundError: there is none. :raises ClusterError: no answer.
        """
        ...

    async def slices(self, driver: str) -> tuple[Slice, ...]:
        """The driver's slices for this node, and those that are bound to no node by its name.

        :raises ClusterError: no answer.
        """
        ...


class _Metadata(msgspec.Struct):
    name: str
    namespace: str = ""
    uid: str | None = None


class _Allocation(msgspec.Struct):
    devices: "_AllocatedDevices | None" = None


class _AllocatedDevices(msgspec.Struct):
    results: list[AllocatedDevice] | None = None


class _ClaimStatus(msgspec.Struct):
    allocation: _Allocation | None = None


class _Claim(msgspec.Struct):
    metadata: _Metadata
    status: _ClaimStatus | None = None


class _Attribute(msgspec.Struct):
    string: str | None = None


class _Attributes(msgspec.Struct):
    device_id: _Attribute | None = msgspec.field(name=DEVICE_ID, default=None)
    resource: _Attribute | None = msgspec.field(name=RESOURCE, default=None)


class _Device(msgspec.Struct):
    name: str
    attributes: _Attributes | None = None


class _Pool(msgspec.Struct):
    name: str
    generation: int | None = None


class _SliceSpec(msgspec.Struct):
    driver: str
    pool: _Pool
    devices: list[_Device] | None = None


class _Slice(msgspec.Struct):
    metadata: _Metadata
    spec: _SliceSpec


class _Page(msgspec.Struct):
    metadata: "_PageMetadata"
    items: list[_Slice] | None = None


class _PageMetadata(msgspec.Struct):
    more: str = msgspec.field(name="continue", default="")


_CLAIM = msgspec.json.Decoder(_Claim)
_SLICES = msgspec.json.Decoder(_Page)
_W = TypeVar("_W", _Claim, _Page)


def decode_claim(data: bytes) -> Claim:
    """Read a ResourceClaim.

    :raises ValueError: it is not one.
    """
    wire = _decode(_CLAIM, data)
    if not wire.metadata.name or not wire.metadata.namespace:
        raise ValueError("metadata.name and metadata.namespace must not be empty")
    allocation = wire.status.allocation if wire.status else None
    results = None
    if allocation is not None:
        results = tuple((allocation.devices.results if allocation.devices else None) or ())
    return Claim(
        namespace=wire.metadata.namespace, name=wire.metadata.name, uid=wire.metadata.uid or "", allocated=results
    )


def decode_slices(data: bytes) -> tuple[tuple[Slice, ...], str]:
    """Read one page of a list of ResourceSlices, and the token of the page that follows, "" after the last.

    :raises ValueError: it is not one.
    """
    page = _decode(_SLICES, data)
    return tuple(_slice(item) for item in page.items or ()), page.metadata.more


def _decode(decoder: "msgspec.json.Decoder[_W]", data: bytes) -> _W:
    try:
        return decoder.decode(data)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _slice(wire: _Slice) -> Slice:
    return Slice(
        name=wire.metadata.name,
        driver=wire.spec.driver,
        pool=wire.spec.pool.name,
        generation=wire.spec.pool.generation or 0,
        devices=tuple(
            SliceDevice(
                name=device.name,
                device_id=_text(device.attributes.device_id) if device.attributes else "",
                resource=_text(device.attributes.resource) if device.attributes else "",
            )
            for device in wire.spec.devices or ()
        ),
    )


def _text(attribute: _Attribute | None) -> str:
    return (attribute.string if attribute else None) or ""
