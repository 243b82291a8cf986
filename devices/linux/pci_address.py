"""PCI addresses, and the other numbers of devices in the kernel's notation. Pure."""

import re

from devices.errors import DeviceError, Fault

_ADDRESS = re.compile(r"(?:([0-9a-f]{4,8}):)?([0-9a-f]{2}):([01][0-9a-f])\.([0-7])")


class AddressError(DeviceError):
    """What should be a PCI address, or another value in the kernel's notation, is none."""

    fault = Fault.OPERATOR


def parse_address(text: str) -> str:
    """A PCI address in full: 0000:01:00.0 for 01:00.0.

    :raises AddressError: it is none.
    """
    found = _ADDRESS.fullmatch(text.strip().lower())
    if found is None:
        raise AddressError(f"{text[:60]!a} is no PCI address", hint="write it as in 0000:3b:02.1")
    domain, bus, slot, function = found.groups()
    return f"{domain or '0000'}:{bus}:{slot}.{function}"


def parse_class(text: str) -> int:
    """A device class, hex with or without 0x.

    :raises AddressError: it is none.
    """
    try:
        return int(text.strip(), 16)
    except ValueError:
        raise AddressError(f"{text[:60]!a} is no PCI device class") from None


def parse_numa(text: str | None) -> int:
    """A NUMA node; -1 for everything that is none."""
    stripped = (text or "").strip()
    return int(stripped) if stripped.isascii() and stripped.isdecimal() and len(stripped) < 10 else -1


def vf_index(pf: str, vf: str, offset: int, stride: int) -> int:
    """Which VF of `pf` has the address `vf`, by the offset and stride of its SR-IOV capability; -1 for none."""
    try:
        (domain, base), (other, routing) = _routing(pf), _routing(vf)
    except AddressError:
        return -1
    distance = routing - base - offset
    if offset <= 0 or distance < 0 or domain != other:
        return -1
    if distance == 0:
        return 0
    return distance // stride if stride > 0 and distance % stride == 0 else -1


def vf_address(pf: str, index: int, offset: int, stride: int) -> str:
    """The address of a VF of `pf`.

    :raises AddressError: `pf` is no PCI address.
    """
    domain, base = _routing(pf)
    routing = base + offset + stride * index
    return f"{domain}:{routing >> 8:02x}:{routing >> 3 & 31:02x}.{routing & 7}"


def _routing(bdf: str) -> tuple[str, int]:
    """A domain, and what orders the addresses in it."""
    domain, bus, rest = parse_address(bdf).split(":")
    slot, function = rest.split(".")
    return domain, int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)
