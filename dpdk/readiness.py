"""What a container lacks for DPDK, said before DPDK fails without words. Pure."""

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from dpdk.eal import Port, Wanted
from dpdk.hugepages import Mount, Pages, size_text

CAP_IPC_LOCK: Final = 14
CAP_SYS_ADMIN: Final = 21
CAP_NET_RAW: Final = 13
_MB: Final = 1024 * 1024
_BASE_MB: Final = 64  # what EAL and a few ports with small pools need at the least


class Container(msgspec.Struct, frozen=True, kw_only=True):
    """A container as its kernel has it. Limits are bytes, None for no limit.

    `cpu_nodes` tells the NUMA node of CPUs. `hugetlb` is what its cgroup may still take, by page size in KiB, and
    `taken` what it has already: a program that runs has all that it asked for.
    `devices_missing` are device nodes that it should have and cannot see.
    """

    cpus: Sequence[int] = ()
    cpu_nodes: Mapping[int, int] = {}
    capabilities: int = 0
    memlock: int | None = None
    pages: Sequence[Pages] = ()
    mounts: Sequence[Mount] = ()
    hugetlb: Mapping[int, int | None] = {}
    taken: Mapping[int, int] = {}
    devices_missing: Sequence[str] = ()


class Missing(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that is not as DPDK needs it. `fatal`: it will not start; else it is slow."""

    what: str
    hint: str
    fatal: bool = True


def readiness(container: Container, wanted: Wanted) -> tuple[Missing, ...]:
    """Everything that is missing; nothing when DPDK will start and run at speed."""
    found = _memory(container, wanted)
    found += _rights(container, wanted.ports)
    found += _numa(container, wanted.ports)
    outside = sorted(set(wanted.cpus) - set(container.cpus))
    if outside:
        found.append(Missing(what=f"CPUs {outside} are not the container's", hint="take them from its cpuset"))
    if not container.cpus:
        found.append(Missing(what="the container has no CPU", hint="set requests and limits of whole CPUs"))
    elif len(container.cpus) < 2:
        hint = "2 whole CPUs or more, requests equal to limits, in a pod of class Guaranteed"
        found.append(Missing(what="one CPU: EAL's main thread and the polling share it", hint=hint, fatal=False))
    found += [
        Missing(what=f"{node} is not in the container", hint="request the device by its resource in the pod")
        for node in container.devices_missing
    ]
    return tuple(found)


def _memory(container: Container, wanted: Wanted) -> list[Missing]:
    needed = sum(wanted.memory_mb.values()) or _BASE_MB
    sizes = sorted({pages.size_kb for pages in container.pages if pages.total})
    if not sizes:
        hint = "`multusctl dpdk hugepages --node N --size 2M --count 512`, or hugepages= at boot"
        return [Missing(what="the node has no hugepages", hint=hint)]
    found: list[Missing] = []
    usable = {size: _usable_mb(container, size) for size in sizes}
    if max(usable.values()) < needed:
        best = ", ".join(f"{usable[size]} MiB in pages of {size_text(size)}" for size in sizes)
        hint = "request hugepages-2Mi or hugepages-1Gi in the pod, limits equal to requests"
        found.append(Missing(what=f"{needed} MiB of hugepages are needed, the container can have {best}", hint=hint))
    if wanted.file_prefix and not container.mounts:
        hint = "an emptyDir with medium HugePages, mounted; or no file prefix, which keeps all in memory"
        found.append(Missing(what="no hugetlbfs is mounted in the container", hint=hint))
    for node, mb in wanted.memory_mb.items():
        here = sum(pages.free * pages.size_kb for pages in container.pages if pages.node in {node, -1}) // 1024
        here += sum(container.taken.values()) // _MB
        if here < mb:
            hint = f"`multusctl dpdk hugepages --node {node}`"
            found.append(Missing(what=f"NUMA node {node} has {here} MiB of free hugepages, {mb} are needed", hint=hint))
    return found


def _usable_mb(container: Container, size_kb: int) -> int:
    free = sum(pages.free for pages in container.pages if pages.size_kb == size_kb) * size_kb // 1024
    limit, taken = container.hugetlb.get(size_kb), container.taken.get(size_kb, 0) // _MB
    return (free if limit is None else min(free, limit // _MB)) + taken


def _rights(container: Container, ports: Sequence[Port]) -> list[Missing]:
    found = []
    locking = bool(container.capabilities >> CAP_IPC_LOCK & 1)
    vfio = any(port.driver == "vfio-pci" for port in ports)
    if vfio and not locking and container.memlock is not None:
        what = (
            f"memory for DMA cannot be locked: no CAP_IPC_LOCK, and RLIMIT_MEMLOCK is {container.memlock // 1024} KiB"
        )
        found.append(Missing(what=what, hint="add the capability IPC_LOCK to the container"))
    physical = any(port.driver in {"uio_pci_generic", "igb_uio"} for port in ports)
    if physical and not container.capabilities >> CAP_SYS_ADMIN & 1:
        what = "physical addresses cannot be read: no CAP_SYS_ADMIN"
        found.append(Missing(what=what, hint="use vfio-pci with an IOMMU, or add the capability SYS_ADMIN"))
    verbs = any(port.driver.startswith("mlx") for port in ports)
    if verbs and not container.capabilities >> CAP_NET_RAW & 1:
        found.append(Missing(what="verbs need CAP_NET_RAW", hint="add the capability NET_RAW to the container"))
    return found


def _numa(container: Container, ports: Sequence[Port]) -> list[Missing]:
    """A port whose memory or CPUs are across the interconnect works, at half the speed."""
    cpus = {container.cpu_nodes[cpu] for cpu in container.cpus if container.cpu_nodes.get(cpu, -1) >= 0}
    hint = "kubelet's topologyManagerPolicy single-numa-node puts them on one"
    return [
        Missing(
            what=f"{port.interface} ({port.pci}) is on NUMA node {port.numa}, the CPUs are on {sorted(cpus)}",
            hint=hint,
            fatal=False,
        )
        for port in ports
        if cpus and port.numa >= 0 and port.numa not in cpus
    ]
