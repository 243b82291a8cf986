"""Route netlink by hand: as much as the hot path and the default routes of a pod need.

A dump takes 25 us a link here, where a general library takes over 400 and cannot say which message to send back to
have exactly that route removed. Everything blocks, briefly: call it from a worker thread.
"""

import errno
import itertools
import os
import socket
import struct
import sys
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from devices.errors import KernelError

NEWLINK, GETLINK, SETLINK = 16, 18, 19
NEWADDR, GETADDR = 20, 22
NEWROUTE, DELROUTE, GETROUTE = 24, 25, 26
NEWLINKPROP, DELLINKPROP = 108, 109
CREATE, EXCLUSIVE, APPEND = 0x400, 0x200, 0x800
NESTED: Final = 0x8000
"""Goes with the type of an attribute that is a list of others."""
IFNAME: Final = 3

_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_INTERRUPTED, _ACK_TLVS = 0x10, 0x200
_ERROR, _DONE = 2, 3
_SOL_NETLINK, _CAP_ACK, _EXT_ACK = 270, 10, 11
_MESSAGE_ATTRIBUTE = 1
_TYPE_MASK = 0x3FFF  # the two highest bits of an attribute's type say how its content is encoded
_BUFFER = 65536  # the kernel fills at most 32 KiB per read
_DEADLINE = 5.0  # seconds; the kernel answers within the call, so this only bounds a kernel that does not
_ATTEMPTS = 8  # dumps that a change ran into

_HEADER = struct.Struct("=IHHII")  # length, kind, flags, sequence, port
_ATTRIBUTE = struct.Struct("=HH")  # length, kind
_CODE = struct.Struct("=i")

LINK: Final = struct.Struct("=BxHiII")  # family, type of hardware, index, flags, changed
_EXT_MASK = 29
_sequence = itertools.count(1)  # thread-safe in CPython: one bytecode


class Message(NamedTuple):
    """One answer of a dump: its fixed part, and its attributes by type."""

    kind: int
    body: bytes
    attributes: dict[int, bytes]


def connect() -> socket.socket:
    """A netlink socket of the network namespace that the calling thread is in; it stays there.

    :raises KernelError: out of descriptors or memory.
    """
    try:
        connection = socket.socket(socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    except OSError as error:
        raise _failed("cannot open a netlink socket", error) from None
    connection.settimeout(_DEADLINE)
    for option in (_CAP_ACK, _EXT_ACK):  # short acknowledgements, with the kernel's words in them
        _try_option(connection, option)
    return connection


def _try_option(connection: socket.socket, option: int) -> None:
    try:
        connection.setsockopt(_SOL_NETLINK, option, 1)
    except OSError:  # a kernel older than 4.12: its answers are merely poorer
        return


def dump(connection: socket.socket, kind: int, body: bytes, size: int) -> list[Message]:
    """All objects of a kind. `body` is the request's fixed part, `size` that of each answer's.

    :raises KernelError: the kernel refused, or the objects changed all the time while they were read.
    """
    for _ in range(_ATTEMPTS):
        messages = _dump_once(connection, kind, body, size)
        if messages is not None:
            return messages
    raise KernelError("netlink dump", errno.EAGAIN, "what was read kept changing")


def _dump_once(connection: socket.socket, kind: int, body: bytes, size: int) -> list[Message] | None:
    """The dump, or None when it was not taken in one piece: an object may then be missing from it."""
    messages: list[Message] = []
    whole = True
    for answer, flags, payload in _exchange(connection, kind, _DUMP, body):
        whole = whole and not flags & _INTERRUPTED
        if answer == _DONE:
            return messages if whole else None
        messages.append(Message(answer, payload[:size], attributes(payload[size:])))
    raise KernelError("netlink dump", 0, "it has no end")


class Request(NamedTuple):
    """A change to be made. `body` is its fixed part and attributes; `what` names it in errors."""

    kind: int
    flags: int
    body: bytes
    what: str


def change(connection: socket.socket, kind: int, flags: int, body: bytes, what: str) -> None:
    """Carry out one change. `what` names it in the error.

    :raises KernelError: the kernel refused, with its errno and words.
    """
    change_all(connection, [Request(kind, flags, body, what)])


def change_all(connection: socket.socket, requests: Sequence[Request]) -> None:
    """Carry out changes, in order, at the price of one: the kernel is asked once, and says one word when all is well.

    :raises KernelError: it refused one, with its errno and words; it goes on with those after it all the same.
    """
    numbers = [next(_sequence) & 0xFFFFFFFF for _ in requests]
    last = numbers[-1]
    packed = []
    for number, (kind, flags, body, _) in zip(numbers, requests, strict=True):
        wanted = _REQUEST | flags | (_ACK if number == last else 0)
        packed.append(_HEADER.pack(16 + len(body), kind, wanted, number, 0) + body + b"\0" * (-len(body) % 4))
    try:
        connection.send(b"".join(packed))
        while True:
            for answer, flags, told, payload in _messages(connection.recv(_BUFFER)):
                if answer != _ERROR or told not in numbers:
                    continue  # the rest of what was given up
                try:
                    _check(flags, payload)
                except KernelError as error:
                    raise KernelError(requests[numbers.index(told)].what, error.code, error.reason) from None
                if told == last:
                    return
    except OSError as error:
        raise KernelError(requests[0].what, error.errno or 0, error.strerror or str(error) or "no answer") from None


def ask(connection: socket.socket, kind: int, body: bytes, size: int, what: str) -> list[Message]:
    """The answers to one question that is no dump. `body` is its fixed part and attributes; `what` names it in errors.

    :raises KernelError: the kernel refused, such as ENODEV for an interface that is not there.
    """
    try:
        return [
            Message(answer, payload[:size], attributes(payload[size:]))
            for answer, _, payload in _exchange(connection, kind, _ACK, body)
            if answer not in (_ERROR, _DONE)
        ]
    except KernelError as error:
        raise KernelError(what, error.code, error.reason) from None


def links(connection: socket.socket) -> list[Message]:
    """All interfaces of the socket's namespace, each with its struct ifinfomsg.

    :raises KernelError: the kernel did not list them.
    """
    return dump(connection, GETLINK, bytes(LINK.size) + _NO_STATISTICS, LINK.size)


def text(data: bytes) -> str:
    """A string as Python tells of file names: bytes that are no UTF-8 survive."""
    return os.fsdecode(data.rstrip(b"\0"))


def number(data: bytes) -> int:
    """An unsigned number of any size; 0 for nothing."""
    return int.from_bytes(data, sys.byteorder)


def attributes(data: bytes) -> dict[int, bytes]:
    """Attributes by type; of a type that is there twice the last."""
    found: dict[int, bytes] = {}
    position, end = 0, len(data)
    while position + 4 <= end:  # as `every`: an interface has some 45, and is asked for with each step
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4 or position + length > end:
            break
        found[kind & _TYPE_MASK] = data[position + 4 : position + length]
        position += (length + 3) & ~3
    return found


def every(data: bytes) -> Iterator[tuple[int, bytes]]:
    """All attributes in their order, as in a list where each has the same type."""
    position, end = 0, len(data)
    while position + 4 <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if length < 4 or position + length > end:
            break
        yield kind & _TYPE_MASK, data[position + 4 : position + length]
        position += (length + 3) & ~3


def attribute(kind: int, data: bytes) -> bytes:
    """One attribute, padded."""
    return _ATTRIBUTE.pack(4 + len(data), kind) + data + b"\0" * (-len(data) % 4)


_NO_STATISTICS: Final = attribute(_EXT_MASK, struct.pack("=I", 8))  # they are most of a dump


def _exchange(connection: socket.socket, kind: int, flags: int, body: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Send a request and yield the answers to it, as kind, flags and payload, until the last (DONE or ERROR)."""
    sequence = next(_sequence) & 0xFFFFFFFF
    try:
        connection.send(_HEADER.pack(16 + len(body), kind, _REQUEST | flags, sequence, 0) + body)
        while True:
            data = connection.recv(_BUFFER)
            for answer, answer_flags, told, payload in _messages(data):
                if told != sequence:
                    continue  # the rest of a dump that was given up
                if answer in (_ERROR, _DONE):
                    _check(answer_flags, payload)
                yield answer, answer_flags, payload
                if answer in (_ERROR, _DONE):
                    return
    except OSError as error:
        raise _failed("netlink", error) from None


def events(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What a socket that is in groups received: the kind of each message, and its fixed part with attributes.

    :raises KernelError: it is cut short.
    """
    return ((kind, payload) for kind, _, _, payload in _messages(data))


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    position, end = 0, len(data)
    while position + 16 <= end:
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, position)
        if length < 16 or position + length > end:
            raise KernelError("netlink", 0, "a message is cut short")
        yield kind, flags, sequence, data[position + 16 : position + length]
        position += (length + 3) & ~3


def _check(flags: int, payload: bytes) -> None:
    code = -_CODE.unpack_from(payload)[0] if len(payload) >= 4 else 0
    if code:
        words = b""
        if flags & _ACK_TLVS:  # after the code and the header of the request
            words = attributes(payload[20:]).get(_MESSAGE_ATTRIBUTE, b"")
        told = words.rstrip(b"\0").decode(errors="replace")
        reason = os.strerror(code)
        raise KernelError("netlink", code, f"{reason}: {told}" if told else reason)


def _failed(what: str, error: OSError) -> KernelError:
    return KernelError(what, error.errno or 0, error.strerror or str(error) or "no answer")
