"""What the device manager has and does, in numbers: for metrics."""

import msgspec

from devices.offers import Counts


class PoolStatistics(msgspec.Struct, frozen=True, kw_only=True):
    """A pool at this moment. `allocated` counts what was given out here; a kubelet keeps its own count.

    `followed` is whether a kubelet follows it.
    """

    resource: str
    devices: int
    healthy: int
    allocated: int
    followed: bool
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
