"""A packet filter for DPDK: rules as an eBPF program in an ELF file, which testpmd's `bpf-load rx` puts before a port.

Flow rules are a NIC's work, and a VF of an 82576 has none; a program before the port works on every NIC.
"""

import struct
from collections.abc import Sequence
from typing import Final

TCP: Final = 6
UDP: Final = 17

Rule = tuple[int, int]
"""An IP protocol and a destination port: what is dropped."""

_HALF, _BYTE, _AND, _SET, _IF_EQUAL, _UNLESS, _EXIT = 0x69, 0x71, 0x57, 0xB7, 0x15, 0x55, 0x95
_TYPE, _LENGTH, _FRAGMENT, _PROTOCOL, _PORT = 12, 14, 20, 23, 36  # where they are in a frame without a tag
_IPV4: Final = 0x0800
_PLAIN: Final = 0x45  # a header of 20 bytes
_OFFSET: Final = 0x1FFF
_EM_BPF: Final = 247
_SKIP, _PASS, _DROP = "the next", "pass", "drop"

_Word = tuple[int, int, int | str, int]
"""Code, register, offset or where it jumps to, and value."""


def program(rules: Sequence[Rule]) -> bytes:
    """An ELF object whose code says 0 for a frame to be dropped.

    What is no IPv4 passes. IPv4 that hides its ports, by options or in later fragments, is dropped.
    """
    words: list[_Word] = [(_SET, 0, 0, 1)]
    words += [(_HALF, 2, _TYPE, 0), (_UNLESS, 2, _PASS, _swapped(_IPV4))]
    words += [(_BYTE, 2, _LENGTH, 0), (_UNLESS, 2, _DROP, _PLAIN)]
    words += [(_HALF, 2, _FRAGMENT, 0), (_AND, 2, 0, _swapped(_OFFSET)), (_UNLESS, 2, _DROP, 0)]
    words += [(_BYTE, 2, _PROTOCOL, 0), (_HALF, 3, _PORT, 0)]
    for protocol, port in rules:
        words += [(_UNLESS, 2, _SKIP, protocol), (_IF_EQUAL, 3, _DROP, _swapped(port))]
    places = {_PASS: len(words), _DROP: len(words) + 1}
    words += [(_EXIT, 0, 0, 0), (_SET, 0, 0, 0), (_EXIT, 0, 0, 0)]
    return _elf(b"".join(_encoded(word, index, places) for index, word in enumerate(words)))


def _encoded(word: _Word, index: int, places: dict[str, int]) -> bytes:
    code, register, offset, value = word
    if isinstance(offset, str):
        offset = 1 if offset == _SKIP else places[offset] - index - 1
    source = 1 if code in {_HALF, _BYTE} else 0  # the frame
    return struct.pack("<BBhi", code, source << 4 | register, offset, value)


def _swapped(value: int) -> int:
    """A number of two bytes as a load of the wire's bytes gives it."""
    return int.from_bytes(value.to_bytes(2, "big"), "little")


def _elf(code: bytes) -> bytes:
    """An object file with a section .text."""
    names = b"\0.text\0.shstrtab\0"
    code_at = 64
    names_at = code_at + len(code)
    sections_at = -(-(names_at + len(names)) // 8) * 8
    head = struct.pack(
        "<4sBBBB8xHHIQQQIHHHHHH", b"\x7fELF", 2, 1, 1, 0, 1, _EM_BPF, 1, 0, 0, sections_at, 0, 64, 0, 0, 64, 3, 2
    )
    text = struct.pack("<IIQQQQIIQQ", 1, 1, 2 | 4, 0, code_at, len(code), 0, 0, 8, 0)
    strings = struct.pack("<IIQQQQIIQQ", 7, 3, 0, 0, names_at, len(names), 0, 0, 1, 0)
    return (head + code + names).ljust(sections_at, b"\0") + bytes(64) + text + strings
