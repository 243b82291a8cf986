"""What a DPDK program in a pod is told: EAL's arguments, and the numbers of its ports. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Literal

import msgspec

from dpdk.errors import DpdkError

_MAX_LCORE: Final = 128  # RTE_MAX_LCORE of a default build: CPUs beyond need a number of their own below it
_MAX_CPU: Final = 8192
_PREFIX = re.compile(r"[A-Za-z0-9._-]{1,64}")

Iova = Literal["va", "pa", ""]


class Port(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A DPDK port. `network` is "namespace/name" and `interface` what the pod's network-status calls it.

    `numa` is -1 when not known. `vlan` is what the PF adds to its frames; the program sees them without. `ips` are
    the addresses that its network gave it, which nobody has set: the program may.
    """

    network: str
    interface: str
    pci: str
    numa: int = -1
    driver: str = ""
    mac: str = ""
    vlan: int = 0
    ips: tuple[str, ...] = ()


class Wanted(msgspec.Struct, frozen=True, kw_only=True):
    """What arguments are made from.

    `memory_mb` is per NUMA node; empty lets EAL take what it needs. With a `file_prefix`, secondary processes can
    attach; without one everything stays in memory, which needs no mounted hugetlbfs. `iova` "" lets EAL choose.
    """

    cpus: Sequence[int] = ()
    ports: Sequence[Port] = ()
    memory_mb: Mapping[int, int] = {}
    file_prefix: str = ""
    iova: Iova = ""


def parse_cpus(text: str) -> tuple[int, ...]:
    """CPUs of a kernel list such as 0-3,8.

    :raises DpdkError: it is none.
    """
    found: set[int] = set()
    for part in text.strip().split(","):
        if not part.strip():
            continue
        first, dash, last = part.strip().partition("-")
        ends = (first, last if dash else first)
        if not all(each.isascii() and each.isdecimal() and len(each) < 6 for each in ends):
            raise DpdkError(f"{text[:60]!a} is no list of CPUs", hint="write it as 0-3,8")
        low, high = (int(each) for each in ends)
        if high < low or high >= _MAX_CPU:
            raise DpdkError(f"{part.strip()!a} is no range of CPUs", hint="write it as 0-3,8")
        found.update(range(low, high + 1))
    return tuple(sorted(found))


def format_cpus(cpus: Iterable[int]) -> str:
    """The shortest list: 0-3,8."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and cpu == runs[-1][1] + 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def eal_arguments(wanted: Wanted) -> tuple[str, ...]:
    """The arguments before `--`. Devices are given in the order of the networks; `port_numbers` tells their numbers.

    :raises DpdkError: something in them would not be understood.
    """
    arguments: list[str] = []
    cpus = sorted(set(wanted.cpus))
    if cpus and cpus[-1] >= _MAX_LCORE:
        if len(cpus) > _MAX_LCORE:
            raise DpdkError(f"{len(cpus)} CPUs are more than DPDK's {_MAX_LCORE}", hint="give the container fewer")
        arguments += ["--lcores", ",".join(f"{lcore}@{cpu}" for lcore, cpu in enumerate(cpus))]
    elif cpus:
        arguments += ["-l", format_cpus(cpus)]
    for bdf in dict.fromkeys(port.pci for port in wanted.ports):
        arguments += ["-a", bdf]
    if not wanted.ports:
        arguments.append("--no-pci")
    if wanted.memory_mb:
        last = max(wanted.memory_mb)
        if min(wanted.memory_mb) < 0 or min(wanted.memory_mb.values()) < 0:
            raise DpdkError("hugepage memory is negative, or on no NUMA node")
        arguments += ["--socket-mem", ",".join(str(wanted.memory_mb.get(node, 0)) for node in range(last + 1))]
    if wanted.file_prefix:
        if not _PREFIX.fullmatch(wanted.file_prefix):
            raise DpdkError(f"{wanted.file_prefix[:80]!a} is no file prefix", hint="letters, digits, '.', '_' and '-'")
        arguments += ["--file-prefix", wanted.file_prefix, "--huge-unlink"]
    else:
        arguments.append("--in-memory")
    if wanted.iova:
        arguments += ["--iova-mode", wanted.iova]
    return tuple(arguments)


def choose_iova(ports: Iterable[Port], *, noiommu: bool = False) -> Iova:
    """Virtual addresses wherever an IOMMU or verbs translate them: physical ones need CAP_SYS_ADMIN in the pod."""
    drivers = {port.driver for port in ports}
    if not drivers:
        return ""
    return "pa" if noiommu or drivers & {"uio_pci_generic", "igb_uio"} else "va"


def port_numbers(ports: Sequence[Port]) -> tuple[int, ...]:
    """The number that DPDK gives each: it probes a bus by address, whatever the order of `-a` is."""
    order = sorted({port.pci for port in ports})
    return tuple(order.index(port.pci) for port in ports)
