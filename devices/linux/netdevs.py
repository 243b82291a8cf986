"""Interfaces of devices, moved between network namespaces and changed there: names, MAC, MTU, up or down.

A move and the new name are one request, which the kernel carries out under one lock: nobody sees the interface in the
pod under the host's name, and no temporary name is needed. Everything blocks: call it from a worker thread.
"""

import os
import socket
import struct
from typing import Final

import msgspec

from devices.linux import rtnetlink
from devices.linux.rtnetlink import NESTED, attribute

_IFF_UP: Final = 0x1
_ADDRESS, _IFNAME, _MTU, _MASTER, _NS_FD = 1, 3, 4, 10, 28
_PROP_LIST, _ALT_IFNAME, _PARENT_NAME = 52, 53, 56


class Netdev(msgspec.Struct, frozen=True, kw_only=True):
    """An interface. `parent` is the address of its device, "" before Linux 5.14; `master` an index, 0 for none."""

    index: int
    name: str
    mac: str = ""
    mtu: int = 0
    up: bool = False
    master: int = 0
    altnames: tuple[str, ...] = ()
    parent: str = ""


class Change(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What is to be different about an interface; None is left alone."""

    name: str | None = None
    mac: str | None = None
    mtu: int | None = None
    up: bool | None = None


def read(connection: socket.socket) -> tuple[Netdev, ...]:
    """Every interface in the socket's namespace.

    :raises KernelError: the kernel did not list them.
    """
    return tuple(_netdev(message) for message in rtnetlink.links(connection))


def change(connection: socket.socket, index: int, wanted: Change) -> None:
    """Change one interface.

    :raises KernelError: the kernel or the driver refused; whether part of it was done is then unknown.
    """
    rtnetlink.change_all(connection, [changing(index, wanted)])


def changing(index: int, wanted: Change) -> rtnetlink.Request:
    """The request that changes one interface."""
    flags, mask = (_IFF_UP if wanted.up else 0), (_IFF_UP if wanted.up is not None else 0)
    body = rtnetlink.LINK.pack(0, 0, index, flags, mask)
    if wanted.name is not None:
        body += attribute(_IFNAME, _text(wanted.name))
    if wanted.mac is not None:
        body += attribute(_ADDRESS, bytes.fromhex(wanted.mac.replace(":", "")))
    if wanted.mtu is not None:
        body += attribute(_MTU, struct.pack("=I", wanted.mtu))
    return rtnetlink.Request(rtnetlink.SETLINK, 0, body, f"setting {_words(wanted)} of interface {index}")


def move(connection: socket.socket, index: int, namespace: int, name: str) -> None:
    """Move an interface to the namespace of an open file, where it is called `name`; it is down then.

    :raises KernelError: EEXIST for a name that is in use there; the interface may have moved all the same.
    """
    body = rtnetlink.LINK.pack(0, 0, index, 0, 0)
    body += attribute(_NS_FD, struct.pack("=I", namespace)) + attribute(_IFNAME, _text(name))
    rtnetlink.change(connection, rtnetlink.SETLINK, 0, body, f"moving interface {index} as {name}")


def add_altname(connection: socket.socket, index: int, name: str) -> None:
    """Give an interface one more name.

    :raises KernelError: EEXIST for a name that is in use.
    """
    flags = rtnetlink.CREATE | rtnetlink.EXCLUSIVE | rtnetlink.APPEND
    rtnetlink.change(connection, rtnetlink.NEWLINKPROP, flags, _altname(index, name), f"adding the name {name}")


def drop_altname(connection: socket.socket, index: int, name: str) -> None:
    """Take such a name away.

    :raises KernelError: it has no such name.
    """
    rtnetlink.change(connection, rtnetlink.DELLINKPROP, 0, _altname(index, name), f"removing the name {name}")


def _altname(index: int, name: str) -> bytes:
    names = attribute(_PROP_LIST | NESTED, attribute(_ALT_IFNAME, _text(name)))
    return rtnetlink.LINK.pack(0, 0, index, 0, 0) + names


def _netdev(message: rtnetlink.Message) -> Netdev:
    _, _, index, flags, _ = rtnetlink.LINK.unpack(message.body)
    found = message.attributes
    names = rtnetlink.every(found.get(_PROP_LIST, b""))
    return Netdev(
        index=index,
        name=rtnetlink.text(found.get(_IFNAME, b"")),
        mac=found.get(_ADDRESS, b"").hex(":"),
        mtu=rtnetlink.number(found.get(_MTU, b"")),
        up=bool(flags & _IFF_UP),
        master=rtnetlink.number(found.get(_MASTER, b"")),
        altnames=tuple(rtnetlink.text(name) for kind, name in names if kind == _ALT_IFNAME),
        parent=rtnetlink.text(found.get(_PARENT_NAME, b"")),
    )


def _text(name: str) -> bytes:
    return os.fsencode(name) + b"\0"


def _words(wanted: Change) -> str:
    given = msgspec.structs.asdict(wanted).items()
    return ", ".join(f"{key} {value}" for key, value in given if value is not None)
