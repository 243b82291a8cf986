"""The ends of the machine's wires: single frames as they are there, and many of them, counted."""

import contextlib
import socket
import struct
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from tests.vm.guest.hardware import Card, run, until

_ALL: Final = 3  # ETH_P_ALL
_IPV4: Final = b"\x08\x00"
_UDP: Final = 17
_PACKET: Final = 263  # SOL_PACKET
_ADD_MEMBERSHIP, _AUXDATA, _PROMISCUOUS = 1, 8, 1
_TAGGED: Final = 1 << 4  # TP_STATUS_VLAN_VALID
_AUX: Final = struct.Struct("=IIIHHHH")  # struct tpacket_auxdata


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A UDP frame; `vlan` 0 is none."""

    source: str
    target: str
    vlan: int
    port: int = 9


class End:
    """A card's end of a wire: it sends what it is told and hears everything, with the VLAN that each frame had."""

    def __init__(self, card: Card) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL))
        self._socket.bind((card.netdev, _ALL))
        self._socket.setsockopt(_PACKET, _AUXDATA, 1)
        member = struct.pack("=iHH8s", socket.if_nametoindex(card.netdev), _PROMISCUOUS, 0, b"")
        self._socket.setsockopt(_PACKET, _ADD_MEMBERSHIP, member)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def send(self, frame: Frame) -> None:
        """Put it on the wire."""
        tag = struct.pack(">HH", 0x8100, frame.vlan) if frame.vlan else b""
        udp = struct.pack(">HHHH", 1024, frame.port, 26, 0) + bytes(18)
        packet = struct.pack(
            ">BBHHHBBH4s4s", 0x45, 0, 46, 0, 0, 64, _UDP, 0, bytes([10, 1, 0, 1]), bytes([10, 1, 0, 2])
        )
        self._socket.send(_raw(frame.target) + _raw(frame.source) + tag + _IPV4 + packet + udp)

    def heard(self, source: str, *, seconds: float) -> Frame | None:
        """The next UDP frame that comes in from a MAC; None when none comes in time."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            self._socket.settimeout(left)
            try:
                data, extra, _, address = self._socket.recvmsg(2048, socket.CMSG_SPACE(_AUX.size))
            except TimeoutError:
                break
            if address[2] != socket.PACKET_OUTGOING and data[6:14] == _raw(source) + _IPV4 and data[23] == _UDP:
                port = int.from_bytes(data[36:38], "big")
                return Frame(source=source, target=data[:6].hex(":"), vlan=_vlan(extra), port=port)
        return None


def send(card: Card, target: str, *, count: int, vlan: int = 0, port: int = 9, rate: int = 2000) -> None:
    """UDP frames from a card by the kernel's packet generator; when this returns they have been sent."""
    run("modprobe pktgen")
    proc = Path("/proc/net/pktgen")
    (proc / "kpktgend_0").write_text("rem_device_all\n")  # it takes off the last character, whatever that is
    (proc / "kpktgend_0").write_text(f"add_device {card.netdev}\n")
    settings = [f"count {count}", "pkt_size 64", f"ratep {rate}", "dst 10.1.0.2", f"dst_mac {target}"]
    settings += [f"udp_dst_min {port}", f"udp_dst_max {port}", *([f"vlan_id {vlan}"] if vlan else [])]
    for line in settings:
        (proc / card.netdev).write_text(f"{line}\n")
    try:
        (proc / "pgctrl").write_text("start\n")  # returns at the end
    finally:
        (proc / "kpktgend_0").write_text("rem_device_all\n")


def received(card: Card) -> int:
    """Frames that came in at a card."""
    return int((card.path / "net" / card.netdev / "statistics/rx_packets").read_text())


def come_through(source: Card, sink: Card, target: str, *, count: int, vlan: int = 0, port: int = 9) -> int:
    """How many of the frames that go in at one card come out at another, within two seconds."""
    start = received(sink)
    send(source, target, count=count, vlan=vlan, port=port)
    with contextlib.suppress(AssertionError):
        until(lambda: received(sink) - start >= count, "", seconds=2)
    return received(sink) - start


class Pinging:
    """Echo requests in the background; how many of them were answered."""

    def __init__(self, address: str, *, count: int) -> None:
        command = ["ping", "-n", "-i", "0.2", "-c", str(count), "-W", "5", address]
        self._count = count
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)

    def lost(self) -> int:
        """Waits for the end."""
        said, _ = self._process.communicate(timeout=60)
        return self._count - said.count("bytes from")


def _raw(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _vlan(extra: list[tuple[int, int, bytes]]) -> int:
    for level, kind, data in extra:
        if (level, kind) == (_PACKET, _AUXDATA):
            status, _, _, _, _, tag, _ = _AUX.unpack(data[: _AUX.size])
            return int(tag) & 0xFFF if status & _TAGGED else 0
    return 0
