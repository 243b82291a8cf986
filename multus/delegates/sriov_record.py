"""What is kept of a VF while a pod has it: how it was before; ours in the journal, upstream's in its own files.

Source of the files: sriov-cni v2.10.0, pkg/utils and pkg/types. They are read on DEL, so that a node can change over
while pods run, and removed then; none is ever written. They are as hostile as any input.
"""

import logging
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from devices.errors import DeviceError
from devices.linux.netdevs import Netdev
from devices.linux.pci_address import parse_address
from devices.linux.vfs import DOT1Q, QINQ, VFState
from devices.vf import VFConfig
from multus.cni import document
from multus.cni.document import Document, DocumentError
from multus.cni.request import check_container_id, check_ifname, valid_attachments
from multus.delegates.sriov_conf import SriovConfError, outline
from multus.files import FileError, read_small, remove

logger = logging.getLogger(__name__)

KIND: Final = "sriov"
UPSTREAM: Final = Path("/var/lib/cni/sriov")
_MAX_FILE = 1024 * 1024
_LINK_STATES = ("auto", "enable", "disable")
_TOUCHING = {
    "vlan": ("vlan",),
    "mac": ("mac",),
    "rate": ("min_tx_rate", "max_tx_rate"),
    "spoofchk": ("spoofchk",),
    "trust": ("trust",),
    "link_state": ("link_state",),
}


class Store(Protocol):
    """Where records are kept: durable when a method returns. Keyed by a VF's address."""

    async def save(self, key: str, kind: str, data: bytes) -> None:
        """Keep it in place of what was there."""

    async def load(self, key: str, kind: str) -> bytes | None:
        """What was kept last, or None."""

    async def forget(self, key: str, kind: str) -> None:
        """Keep it no longer."""

    async def all(self, kind: str) -> list[tuple[str, bytes]]:
        """Everything of a kind, as (key, data)."""


class Record(msgspec.Struct, frozen=True, kw_only=True):
    """A VF in a pod: whose it is, how it was before (`original`, `netdev`), and what was asked for.

    `netdev` is None for a VF that a program drives. `netns_id` is "" and `boot_id` "" where upstream did not say.
    `released`: the pod is gone, but the interface was nowhere to be found then. `driver` is the one that it has in the
    pod. `bound`: it was bound to that for this pod, by a record of the binder's own, and its interface had `own_mac`
    before. `beside`: the pod's program works beside the kernel's driver. `rates` are the least and the most that it may
    send, where the driver made others of those asked for.
    """

    bdf: str
    container_id: str
    ifname: str
    netns: str
    netns_id: str = ""
    boot_id: str = ""
    network: str = ""
    driver: str = ""
    original: VFState = VFState()
    netdev: Netdev | None = None
    touched: tuple[str, ...] = ()
    wanted: VFConfig = VFConfig()
    released: bool = False
    bound: bool = False
    beside: bool = False
    own_mac: str = ""
    rates: tuple[int, int] | None = None

    def is_of(self, container_id: str, ifname: str) -> bool:
        """Whether it is that attachment's."""
        return (self.container_id, self.ifname) == (container_id, ifname)


_encoder = msgspec.json.Encoder()
_decoder = msgspec.json.Decoder(Record)


def encode_record(record: Record) -> bytes:
    """The record for the store."""
    return _encoder.encode(record)


async def stale(records: Store, conf: bytes) -> list[Record]:
    """What is kept for attachments of this network that a GC's configuration does not list as valid.

    Nothing when it lists none at all, not even an empty list: then nothing may be called stale.

    :raises CNIError: the list cannot be read.
    """
    listed, name = valid_attachments(conf), outline(conf).name
    if listed is None or not name:
        return []
    valid = {(each.container_id, each.ifname) for each in listed}
    kept = [decode_record(key, data) for key, data in await records.all(KIND)]
    return [
        each
        for each in kept
        if each is not None and each.network == name and (each.container_id, each.ifname) not in valid
    ]


def decode_record(key: str, data: bytes) -> Record | None:
    """A record from the store; None for one that cannot be understood: nothing can be put back by it."""
    try:
        return _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        logger.error("the record of VF %s cannot be understood, and is not used: %s", key, error)
        return None


class UpstreamFiles:
    """sriov-cni's own files in its directory. Everything blocks."""

    def __init__(self, directory: Path = UPSTREAM) -> None:
        self._directory = directory

    def load(self, container_id: str, ifname: str) -> Record | None:
        """What it kept for an attachment; None for nothing, or nothing of use."""
        path = self._cache(container_id, ifname)
        return self._read(path, container_id, ifname) if path is not None else None

    def holder(self, bdf: str) -> str:
        """The path of the network namespace that has the VF, "" for none."""
        try:
            return read_small(self._allocation(bdf), limit=4096).decode(errors="replace").strip().strip("\0")
        except FileError:
            return ""

    def find(self, bdf: str) -> Record | None:
        """What it kept for a VF, whosever it was."""
        try:
            paths = sorted(path for path in self._directory.iterdir() if "-" in path.name)
        except OSError:
            return None
        for path in paths:
            container_id, _, ifname = path.name.rpartition("-")
            found = None if check_container_id(container_id) else self._read(path, container_id, ifname)
            if found is not None and found.bdf == bdf:
                return found
        return None

    def forget(self, record: Record, *, claim: bool) -> None:
        """Remove what it kept for this attachment, and its claim on the VF, unless that is another's by now.

        :raises FileError: a file could not be removed.
        """
        if claim:
            remove(self._allocation(record.bdf))
        path = self._cache(record.container_id, record.ifname)
        if path is not None:
            remove(path)

    def _allocation(self, bdf: str) -> Path:
        return self._directory / "pci" / bdf

    def _cache(self, container_id: str, ifname: str) -> Path | None:
        """None for names that would lead elsewhere; an interface's name has no slash."""
        if check_container_id(container_id) or check_ifname(ifname):
            return None
        return self._directory / f"{container_id}-{ifname}"

    def _read(self, path: Path, container_id: str, ifname: str) -> Record | None:
        try:
            top = document.decode(read_small(path, limit=_MAX_FILE))
            bdf = parse_address(_get(top, "deviceID", str) or "")
            raw = document.member(top, "OrigVfState")
            before = document.decode(bytes(raw)) if raw is not None else Document()
            return Record(
                bdf=bdf,
                container_id=container_id,
                ifname=ifname,
                netns=self.holder(bdf),
                network=_get(top, "name", str) or "",
                original=_state(before),
                netdev=_netdev(before),
                touched=tuple(
                    group
                    for group, keys in _TOUCHING.items()
                    if any(_get(top, key, object) not in (None, "") for key in keys)
                ),
            )
        except FileError as error:
            if not error.missing:
                logger.warning("sriov-cni's record %s is not used: %s", path, error)
        except (DocumentError, DeviceError, SriovConfError) as error:
            logger.warning("sriov-cni's record %s is not used: %s", path, error)
        return None


def _get(top: Document, key: str, kind: Any) -> Any:
    raw = document.member(top, key)
    return None if raw is None else document.value(raw, kind)


def _state(before: Document) -> VFState:
    proto, link_state = _get(before, "VlanProto", int), _get(before, "LinkState", int)
    return VFState(
        mac=_mac(before, "AdminMAC") or None,
        vlan=_number(before, "Vlan", 4095),
        qos=_number(before, "VlanQoS", 7),
        proto=proto if proto in (DOT1Q, QINQ) else DOT1Q,
        spoofchk=_get(before, "SpoofChk", bool),
        trust=_get(before, "Trust", bool),
        link_state=_LINK_STATES[link_state] if link_state in (0, 1, 2) else None,
        min_tx=_number(before, "MinTxRate", 2**32 - 1),
        max_tx=_number(before, "MaxTxRate", 2**32 - 1),
    )


def _netdev(before: Document) -> Netdev | None:
    """None for a VF that had none: upstream tells by nothing else that a program drives it."""
    name = _get(before, "HostIFName", str) or ""
    if not name or check_ifname(name):
        return None
    mtu = _number(before, "MTU", 2**31 - 1) or 0
    # Index 0: its other names are not told.
    return Netdev(index=0, name=name, mac=_mac(before, "EffectiveMAC"), mtu=mtu)


def _number(before: Document, key: str, most: int) -> int | None:
    number = _get(before, key, int)
    return number if number is not None and 0 <= number <= most else None


def _mac(before: Document, key: str) -> str:
    text = (_get(before, key, str) or "").lower()
    try:
        return text if len(bytes.fromhex(text.replace(":", ""))) == 6 and len(text) == 17 else ""
    except ValueError:
        return ""
