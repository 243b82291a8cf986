"""Addresses as a pod writes them, held to what Go's net package takes: the plugins read them with that."""

import ipaddress
import re

from multus.networks.errors import NetworkError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

_HARDWARE = re.compile(
    r"[0-9a-f]{2}(?P<by>[:-])[0-9a-f]{2}((?P=by)[0-9a-f]{2})*|[0-9a-f]{4}(\.[0-9a-f]{4})+", re.ASCII | re.IGNORECASE
)


def ip_address(text: str) -> Address | None:
    """The address, None for what is none; one with a zone is none. IPv4 in IPv6 clothes is IPv4."""
    if "%" in text:
        return None
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address


def check_address(text: str) -> None:
    """Let pass an address, with or without a prefix length.

    :raises NetworkError: for anything else.
    """
    host, slash, length = text.partition("/")
    address = ip_address(host)
    hint = '"ips" has addresses such as "10.1.1.7" or "10.1.1.7/24"'
    if not slash:
        if address is None:
            raise NetworkError(f"failed to parse IP address {_quoted(text)}", hint=hint)
        return
    digits = length.isascii() and length.isdigit() and len(length) <= 3
    bits = 128 if ":" in host else 32
    if address is None or not digits or int(length) > bits:
        raise NetworkError(f"failed to parse CIDR {_quoted(text)}", hint=hint)


def is_hardware_address(text: str) -> bool:
    """Whether the text is one of 6, 8 or 20 octets: 00:00:5e:00:53:01, 00-00-5e-00-53-01 or 0000.5e00.5301."""
    return _HARDWARE.fullmatch(text) is not None and sum(map(str.isalnum, text)) in (12, 16, 40)


def check_mac(text: str) -> None:
    """Let pass what can be an interface's MAC.

    :raises NetworkError: for anything else.
    """
    if not is_hardware_address(text):
        raise NetworkError(
            f"failed to mac: address {text[:60]!a}: invalid MAC address",
            hint='six octets in hexadecimal, such as "02:00:5e:00:53:01"',
        )


def check_guid(text: str) -> None:
    """Let pass what can be an InfiniBand GUID.

    :raises NetworkError: for anything else.
    """
    if not is_hardware_address(text):
        raise NetworkError(
            f"failed to validate infiniband GUID: address {text[:60]!a}: invalid MAC address",
            hint='eight octets in hexadecimal, such as "c2:11:22:33:44:55:66:77"',
        )


def gateway_address(text: str) -> str:
    """The address of a gateway, in its usual spelling.

    :raises NetworkError: for what is no address, or none that packets can be sent through.
    """
    address = ip_address(text)
    if address is None:
        raise NetworkError(
            f"default-route: invalid IP address: {text[:60]!a}",
            hint='give the address of a router, or "default-route": [] for no default route',
        )
    if address.is_unspecified or address.is_multicast or address.is_loopback:
        raise NetworkError(f"default-route: {address} cannot be a gateway", hint="give the address of a router")
    return str(address)


def _quoted(text: str) -> str:
    """In double quotes and fit for a message, as upstream writes it."""
    return '"' + ascii(text[:60])[1:-1] + '"'
