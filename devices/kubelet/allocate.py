"""What a container is told and given for its devices, and which devices are the best choice for it. Pure.

Names, paths and documents are those of upstream's device plugin, which programs in pods read. What is ours beside them,
for devices that a DPDK program drives, has names that begin with MULTUS.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

from devices.linux.nodes import Nodes

Preference = Literal["spread", "pack"]
"""Over as many physical functions as can be, or over as few."""

PERMISSIONS: Final = "rw"
INFO_VERSION: Final = "1.1.0"  # of the Device Information Specification

_VFIO: Final = "/dev/vfio/vfio"
_VHOST_NET, _TUN = "/dev/vhost-net", "/dev/net/tun"
PORTS: Final = "/run/multus/dpdk"
"""In a container: a folder for each of its devices for DPDK, with the files of `devices.portfiles`."""
_DEVICES_IN_A_NAME: Final = str.maketrans("./", "__")


class Device(msgspec.Struct, frozen=True, kw_only=True):
    """A device as a pool offers it. `id` is its PCI address, `parent` the one of its physical function.

    `numa` is its node, -1 when that is unknown or not to be told. `reason` says why it is not healthy.
    """

    id: str
    healthy: bool = True
    reason: str = ""
    numa: int = -1
    parent: str = ""


class Grant(msgspec.Struct, frozen=True, kw_only=True):
    """A device that is given out. `extra` is the pool's additional information, `vhost` its needVhostNet.

    `ports` is the folder on the host where a DPDK program finds its files, "" for a device that has none.
    """

    id: str
    parent: str = ""
    nodes: Nodes = Nodes()
    vhost: bool = False
    extra: Mapping[str, str] = {}
    ports: str = ""


class Spec(msgspec.Struct, frozen=True, kw_only=True):
    """A device node or a folder for a container."""

    host: str
    container: str


def environment_name(resource: str) -> str:
    """The variable that lists a container's devices: PCIDEVICE_INTEL_COM_SRIOV for intel.com/sriov."""
    return f"PCIDEVICE_{resource.translate(_DEVICES_IN_A_NAME).upper()}"


def ports_name(resource: str) -> str:
    """The variable that names the folder of a container's DPDK files: MULTUS_DPDK_INTEL_COM_SRIOV."""
    return environment_name(resource).replace("PCIDEVICE", "MULTUS_DPDK", 1)


def environment(resource: str, grants: Sequence[Grant]) -> dict[str, str]:
    """The variables of one container.

    Sorted, while upstream keeps the kubelet's order, which is that of a hash table: networks of the pod get their
    devices in this same order, so the first address here is the one of the first network.
    """
    name, ordered = environment_name(resource), sorted(grants, key=lambda grant: grant.id)
    info = {grant.id: _information(grant) for grant in ordered}
    found = {name: ",".join(info), f"{name}_INFO": msgspec.json.encode(info).decode()}
    first = next((grant.id for grant in ordered if grant.ports), "")
    return found | ({ports_name(resource): f"{PORTS}/{first}"} if first else {})


def mounts(grants: Iterable[Grant]) -> tuple[Spec, ...]:
    """The folders of one container, to be mounted read-only."""
    ordered = sorted(grants, key=lambda grant: grant.id)
    return tuple(Spec(host=grant.ports, container=f"{PORTS}/{grant.id}") for grant in ordered if grant.ports)


def device_specs(grants: Iterable[Grant]) -> tuple[Spec, ...]:
    """The nodes of one container, each once."""
    found: dict[str, Spec] = {}
    for grant in sorted(grants, key=lambda grant: grant.id):
        for host, container in _paths(grant):
            found.setdefault(host, Spec(host=host, container=container))
    return tuple(found.values())


def device_info(grant: Grant) -> bytes:
    """The device-info document, for the delegate that attaches the device and for the pod's network-status."""
    pci: dict[str, str] = {"pci-address": grant.id}
    if grant.parent and grant.parent != grant.id:
        pci["pf-pci-address"] = grant.parent
    if grant.vhost:
        pci["vhost-net"] = _VHOST_NET
    if grant.nodes.rdma:
        pci["rdma-device"] = grant.nodes.rdma
    if grant.nodes.vdpa:
        vdpa = {"driver": "vhost", "path": f"/dev/{grant.nodes.vdpa}", "pci-address": grant.id}
        return msgspec.json.encode({"type": "vdpa", "version": INFO_VERSION, "vdpa": vdpa})
    return msgspec.json.encode({"type": "pci", "version": INFO_VERSION, "pci": pci})


def info_name(resource: str, device: str) -> str:
    """The name of a device's document, as those expect it who read it."""
    return f"{resource}-{device}-device.json".replace("/", "-")


def preferred(
    devices: Mapping[str, Device],
    available: Collection[str],
    required: Collection[str],
    size: int,
    *,
    preference: Preference = "spread",
) -> tuple[str, ...]:
    """`size` ids of `available`, those that are `required` first; fewer if there are no more.

    On one NUMA node where that is possible: the one of the required devices, else the one that these fill best, so
    that a node with room for more stays whole. On it, over the physical functions as `preference` says.
    """
    chosen = list(dict.fromkeys(sorted(required)))
    left = {id_: devices[id_] for id_ in set(available) - set(chosen) if id_ in devices and devices[id_].healthy}
    nodes = _nodes(left.values(), [devices[id_] for id_ in chosen if id_ in devices], size - len(chosen))
    for node in nodes:
        here = {id_: device for id_, device in left.items() if device.numa == node}
        while here and len(chosen) < size:
            best = _next(here, chosen, devices, preference)
            chosen.append(best)
            del here[best]
    # The kubelet offers only what it believes to be healthy; a shorter answer than asked for is one it refuses.
    chosen += sorted(set(available) - set(chosen))[: max(0, size - len(chosen))]
    return tuple(chosen)


def _nodes(left: Collection[Device], required: Sequence[Device], size: int) -> list[int]:
    """NUMA nodes, the most wanted first."""
    room: dict[int, int] = {}
    for device in left:
        room[device.numa] = room.get(device.numa, 0) + 1
    held = [device.numa for device in required]

    def rank(node: int) -> tuple[int, bool, int, bool, int]:
        fits = room[node] >= size
        # Among those that fit the fullest, among the others the one that gives most: fewest nodes in all.
        return (-held.count(node), not fits, room[node] if fits else -room[node], node < 0, node)

    return sorted(room, key=rank)


def _next(left: Mapping[str, Device], chosen: Sequence[str], devices: Mapping[str, Device], how: Preference) -> str:
    """The device to take next: of the parent that has given least (or most) so far."""
    given = [devices[id_].parent for id_ in chosen if id_ in devices]
    free = [device.parent for device in left.values()]

    def rank(device: Device) -> tuple[int, int, str, str]:
        taken, room = given.count(device.parent), free.count(device.parent)
        # Spread: evenly, and from the parent that has most left. Pack: fill the one that was begun, or is nearly full.
        return (taken, -room, device.parent, device.id) if how == "spread" else (-taken, room, device.parent, device.id)

    return min(left.values(), key=rank).id


def _information(grant: Grant) -> dict[str, Any]:
    nodes = grant.nodes
    told: dict[str, Any] = {"generic": {"deviceID": grant.id}}
    if grant.extra:
        told["extra"] = dict(grant.extra)
    if nodes.group:
        told["vfio"] = {"mount": _VFIO, "dev-mount": f"/dev/vfio/{nodes.group}"}
    if nodes.uio:
        told["uio"] = {"mount": f"/dev/{nodes.uio[0]}"}
    if grant.vhost:
        told["vhost"] = {"net-mount": _VHOST_NET, "tun-mount": _TUN}
    if nodes.rdma:
        told["rdma"] = {"rdma_dev": nodes.rdma} | {
            name.rstrip("0123456789"): f"/dev/infiniband/{name}" for name in nodes.rdma_nodes
        }
    if nodes.vdpa:
        told["vdpa"] = {"mount": f"/dev/{nodes.vdpa}"}
    return told


def _paths(grant: Grant) -> Iterable[tuple[str, str]]:
    """(path on the host, path in the container)."""
    nodes = grant.nodes
    if nodes.group:
        yield _VFIO, _VFIO
        yield f"/dev/vfio/{'noiommu-' * nodes.noiommu}{nodes.group}", f"/dev/vfio/{nodes.group}"
    for name in nodes.uio:
        yield f"/dev/{name}", f"/dev/{name}"
    for name in nodes.rdma_nodes:
        yield f"/dev/infiniband/{name}", f"/dev/infiniband/{name}"
    if grant.vhost:
        yield _VHOST_NET, _VHOST_NET
        yield _TUN, _TUN
    if nodes.vdpa:
        yield f"/dev/{nodes.vdpa}", f"/dev/{nodes.vdpa}"
