"""Which devices the containers of a pod were given, whichever way it was found out."""

from collections.abc import Collection, Iterable

import msgspec


class Devices(msgspec.Struct, frozen=True, kw_only=True):
    """Devices of one resource, each once, sorted: the kubelet's own order is that of a hash table."""

    resource: str
    ids: tuple[str, ...]


class ContainerDevices(msgspec.Struct, frozen=True, kw_only=True):
    """One container and its devices, one entry a resource."""

    container: str
    devices: tuple[Devices, ...] = ()


class PodDevices(msgspec.Struct, frozen=True, kw_only=True):
    """One pod and its containers, in the order in which the source lists them."""

    namespace: str
    name: str
    containers: tuple[ContainerDevices, ...] = ()


def gathered(entries: Iterable[tuple[str, Collection[str]]]) -> tuple[Devices, ...]:
    """One entry a resource, in the order of first mention: the kubelet writes one a NUMA node."""
    found: dict[str, set[str]] = {}
    for resource, ids in entries:
        found.setdefault(resource, set()).update(ids)
    return tuple(Devices(resource=resource, ids=tuple(sorted(ids))) for resource, ids in found.items())
