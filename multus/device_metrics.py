"""The device manager's numbers as Prometheus reads them."""

from collections.abc import Callable, Iterator
from typing import Final

import msgspec
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from devices.statistics import PoolStatistics, Statistics

_STATES: Final = {"all": "devices", "healthy": "healthy", "allocated": "allocated", "used": "used", "free": "free"}
_NODE: Final = (
    ("multus_device_events", "Changes of hardware that were heard of.", "events"),
    ("multus_device_refreshes", "Looks at the hardware that they led to.", "refreshes"),
    ("multus_pool_reloads", "Configurations of pools that were taken.", "reloads"),
    ("multus_pool_refused_configs", "Configurations of pools that were not taken.", "refused_configs"),
)


class DeviceCollector(Collector):
    """Asks for them at each scrape: a pool that is gone is not in it any more."""

    def __init__(self, statistics: Callable[[], Statistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        now = self._statistics()
        yield GaugeMetricFamily("multus_physical_functions", "NICs.", value=now.physical_functions)
        yield GaugeMetricFamily("multus_virtual_functions", "Their virtual functions.", value=now.virtual_functions)
        for name, text, field in _NODE:
            yield CounterMetricFamily(name, text, value=getattr(now, field))
        yield from _pools(now.pools)

    def describe(self) -> Iterator[Metric]:
        """Nothing before the first scrape."""
        return iter(())


def _pools(pools: tuple[PoolStatistics, ...]) -> Iterator[Metric]:
    devices = GaugeMetricFamily(
        "multus_devices",
        "Devices by pool: all, healthy, given out by this daemon, used by anybody, and free.",
        labels=["pool", "state"],
    )
    followed = GaugeMetricFamily("multus_pool_followed", "Whether a kubelet follows the pool.", labels=["pool"])
    rivalled = GaugeMetricFamily(
        "multus_pool_rivalled", "Whether another device plugin serves the pool's resource.", labels=["pool"]
    )
    done = CounterMetricFamily(
        "multus_pool_actions", "What was done for the kubelet, and what failed.", labels=["pool", "action"]
    )
    for pool in pools:
        for state, field in _STATES.items():
            devices.add_metric([pool.resource, state], getattr(pool, field))
        followed.add_metric([pool.resource], pool.followed)
        rivalled.add_metric([pool.resource], pool.rivalled)
        for action, count in msgspec.structs.asdict(pool.counts).items():
            done.add_metric([pool.resource, action], count)
    yield from (devices, followed, rivalled, done)
