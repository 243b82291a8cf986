"""What the device manager has and does, in numbers: for metrics."""

from collections.abc import Collection, Mapping

import msgspec

from devices.offers import Counts, Offer


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at this moment. `allocated` counts what was given out here, `used` what anybody is known to use, `free`
    what is healthy and not used.

    `followed` is whether a kubelet follows it, `rivalled` whether another device plugin serves the same resource.
    """

    resource: str
    devices: int
    healthy: int
    allocated: int
    used: int = 0
    free: int = 0
    followed: bool
    rivalled: bool = False
    counts: Counts


class Statistics(msgspec.Struct, frozen=True, kw_only=True):
    """For metrics. `events` are changes of hardware that were heard of, `refreshes` the looks that they led to."""

    pools: tuple[PoolStatistics, ...] = ()
    physical_functions: int = 0
    virtual_functions: int = 0
    events: int = 0
    refreshes: int = 0
    reloads: int = 0
    refused_configs: int = 0


def of_pool(
    offer: Offer, *, given: Collection[str], used: Collection[str], followed: bool, rivalled: bool
) -> PoolStatistics:
    """The numbers of one pool. `given` are devices that were given out here, `used` those that anybody uses."""
    devices: Mapping[str, bool] = {bdf: device.healthy for bdf, device in offer.devices.items()}
    return PoolStatistics(
        resource=offer.resource,
        devices=len(devices),
        healthy=sum(devices.values()),
        allocated=sum(bdf in given for bdf in devices),
        used=sum(bdf in used for bdf in devices),
        free=sum(healthy and bdf not in used for bdf, healthy in devices.items()),
        followed=followed,
        rivalled=rivalled,
        counts=offer.counts,
    )
