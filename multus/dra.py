"""Devices of a pod's resource claims (Dynamic Resource Allocation), under the network resources they belong to."""

import logging
from collections.abc import Iterable
from typing import ClassVar

from multus.errors import Fault, MultusError
from multus.kube.claims import DEVICE_ID, RESOURCE, AllocatedDevice, Claim, Claims, Slice, SliceDevice
from multus.kube.objects import ExtendedClaim, Pod, PodClaim

logger = logging.getLogger(__name__)

Given = tuple[str, str, str]
"""Resource, container ("" when no container uses the claim), device id."""


class ClaimError(MultusError):
    """A claim or a driver's slice does not say what the pod's networks need to know."""

    fault: ClassVar[Fault] = Fault.OPERATOR


async def allocated(claims: Claims, pod: Pod, wanted: frozenset[str]) -> list[Given]:
    """Devices of the wanted resources that the pod's claims were given. Other devices, a GPU say, are passed over.

    :raises ClaimError: nothing is allocated to a claim, or an extended resource's device belongs to another resource.
    :raises ClusterError: a claim or slice could not be read.
    """
    drivers = _Drivers(claims)
    given: list[Given] = []
    for use in pod.claims:
        claim = await claims.claim(pod.namespace, use.claim)
        for allocation in _results(claim):
            device = await drivers.find(allocation)
            if device is None or not device.device_id or not device.resource:
                logger.debug("claim %s: %s is no network's device", use.claim, _name(allocation))
                continue
            if device.resource in wanted:
                given += [(device.resource, holder, device.device_id) for holder in _holders(use, allocation)]
    if pod.extended is not None:
        given += await _extended(claims, drivers, pod.namespace, pod.extended, wanted)
    return given


async def _extended(
    claims: Claims, drivers: "_Drivers", namespace: str, extended: ExtendedClaim, wanted: frozenset[str]
) -> list[Given]:
    """Devices that the scheduler claimed for resources that a container asks for by count, as of a device plugin."""
    mappings = [mapping for mapping in extended.mappings if mapping.resource in wanted]
    if not mappings:
        return []
    claim = await claims.claim(namespace, extended.claim)
    given: list[Given] = []
    for allocation in _results(claim):
        for mapping in mappings:
            if not _serves(allocation, mapping.request):
                continue
            device = await drivers.find(allocation)
            if device is None or device.resource != mapping.resource or not device.device_id:
                said = (
                    f"{device.resource!r}, {device.device_id!r}" if device is not None else "in no slice of this node"
                )
                raise ClaimError(
                    f"claim {claim.name} gives container {mapping.container} {_name(allocation)} "
                    f"for resource {mapping.resource!r}, but the device is {said}",
                    hint=f"the driver must set {RESOURCE} to that resource, and {DEVICE_ID}",
                )
            given.append((mapping.resource, mapping.container, device.device_id))
    return given


class _Drivers:
    """Devices of this node by driver, each driver's slices read once."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims
        self._known: dict[str, dict[tuple[str, str], SliceDevice]] = {}

    async def find(self, allocation: AllocatedDevice) -> SliceDevice | None:
        """The device, None when no slice for this node has it.

        :raises ClusterError: the slices could not be read.
        """
        driver = allocation.driver
        if driver not in self._known:
            self._known[driver] = _newest(await self._claims.slices(driver))
        return self._known[driver].get((allocation.pool, allocation.device))


def _newest(slices: Iterable[Slice]) -> dict[tuple[str, str], SliceDevice]:
    """Devices by pool and name. While a driver rewrites a pool, slices of the old generation lie about."""
    parts = list(slices)
    newest: dict[str, int] = {}
    for part in parts:
        newest[part.pool] = max(part.generation, newest.get(part.pool, part.generation))
    current = (part for part in parts if part.generation == newest[part.pool])
    return {(part.pool, device.name): device for part in current for device in part.devices}


def _results(claim: Claim) -> tuple[AllocatedDevice, ...]:
    if claim.allocated is None:
        raise ClaimError(
            f"claim {claim.name} has no device allocation",
            hint=f"kubectl -n {claim.namespace} describe resourceclaim {claim.name}",
        )
    return claim.allocated


def _holders(use: PodClaim, allocation: AllocatedDevice) -> list[str]:
    """Containers that use the device, each once; [""] when none does: it is the pod's all the same."""
    return list(dict.fromkeys(each.container for each in use.uses if _serves(allocation, each.request))) or [""]


def _serves(allocation: AllocatedDevice, request: str) -> bool:
    """Whether the device was allocated for that request ("" is any), or for one of the alternatives in it."""
    return request in ("", allocation.request) or allocation.request.startswith(f"{request}/")


def _name(allocation: AllocatedDevice) -> str:
    return f"{allocation.driver}/{allocation.pool}/{allocation.device}"
