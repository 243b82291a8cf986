"""The map that a DPDK pod is given: which network is which port, and the EAL arguments for them. Pure.

It is as hostile as any input when it is read back: who reads it may not be who wrote it.
"""

from collections.abc import Mapping, Sequence
from typing import Final, Literal

import msgspec

from devices.errors import DeviceError
from devices.linux.pci_address import parse_address
from dpdk.eal import Port, Wanted, choose_iova, eal_arguments, port_numbers
from dpdk.errors import DpdkError

VERSION: Final = "1.0"
MAP_LIMIT: Final = 64 * 1024
"""Bytes; a port takes some 200."""


class NumberedPort(Port, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A port with the number that DPDK gives it."""

    port: int


class PortMap(msgspec.Struct, frozen=True, kw_only=True, rename="camel", omit_defaults=True):
    """A pod's ports, in the order of its networks.

    `pod` is "namespace/name", `sandbox` the runtime's name of the pod's sandbox. `eal` are the arguments but for CPUs,
    which the container knows best itself. `memory_mb` is hugepage memory by NUMA node; empty lets EAL take what it
    needs.
    """

    version: Literal["1.0"]
    pod: str
    sandbox: str
    eal: tuple[str, ...]
    uid: str = ""
    memory_mb: dict[int, int] = {}
    ports: tuple[NumberedPort, ...] = ()


def make_map(
    ports: Sequence[Port],
    *,
    pod: str,
    sandbox: str,
    uid: str = "",
    memory_mb: Mapping[int, int] | None = None,
    noiommu: bool = False,
) -> PortMap:
    """The map for ports in the order of their networks.

    :raises DpdkError: one would not be understood.
    """
    memory = dict(memory_mb or {})
    wanted = Wanted(ports=ports, memory_mb=memory, iova=choose_iova(ports, noiommu=noiommu))
    numbered = tuple(
        NumberedPort(port=number, **msgspec.structs.asdict(each))
        for number, each in zip(port_numbers(ports), ports, strict=True)
    )
    return PortMap(
        version=VERSION,
        pod=pod,
        uid=uid,
        sandbox=sandbox,
        eal=eal_arguments(wanted),
        memory_mb=memory,
        ports=numbered,
    )


def encode_map(made: PortMap) -> bytes:
    """The document.

    :raises DpdkError: it is larger than whoever reads it takes.
    """
    data = msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n"
    if len(data) > MAP_LIMIT:
        raise DpdkError(f"the map of {len(made.ports)} ports has {len(data)} bytes, more than {MAP_LIMIT}")
    return data


def decode_map(data: bytes, *, where: str) -> PortMap:
    """A map, whatever the bytes are.

    :raises DpdkError: they are none, or what is in it cannot stand on a command line.
    """
    try:
        found = msgspec.json.decode(data, type=PortMap)
        for port in found.ports:
            if parse_address(port.pci) != port.pci:
                raise DpdkError(f"{where}: {port.pci[:40]!a} is no PCI address in full")
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise DpdkError(f"{where} is no map of DPDK ports: {error}") from None
    except DeviceError as error:
        raise DpdkError(f"{where}: {error.message}") from None
    return found


def arguments(found: PortMap, *, cpus: Sequence[int] = (), file_prefix: str = "") -> tuple[str, ...]:
    """EAL's arguments for a map: made anew from its ports, not taken from it.

    :raises DpdkError: something in them would not be understood.
    """
    noiommu = "pa" in found.eal
    iova = choose_iova(found.ports, noiommu=noiommu)
    return eal_arguments(
        Wanted(cpus=cpus, ports=found.ports, memory_mb=found.memory_mb, file_prefix=file_prefix, iova=iova)
    )


def port_table(found: PortMap) -> bytes:
    """The ports for a shell, one a line: number, network, interface, address, MAC, VLAN, NUMA node; "-" for none."""
    lines = []
    for port in found.ports:
        numa = str(port.numa) if port.numa >= 0 else ""
        cells = (str(port.port), port.network, port.interface, port.pci, port.mac, str(port.vlan or ""), numa)
        lines.append(" ".join("_".join(cell.split()) or "-" for cell in cells) + "\n")
    return "".join(lines).encode()


def told(port: NumberedPort, found: PortMap) -> dict[str, object]:
    """What the pod's network-status says of a port, beside its address."""
    known = {"driver": port.driver, "mac": port.mac, "vlan": port.vlan}
    numa = {"numa": port.numa} if port.numa >= 0 else {}
    return {"port": port.port, **{key: value for key, value in known.items() if value}, **numa, "eal": list(found.eal)}
