"""The two kinds of state files of an earlier Multus, as they are written: read as far as they can be.

Facts about them are in `multus.legacy`, which makes sandboxes of them. A file that says nothing useful is None here,
never an error, and each value that cannot be used is as if it were absent.
"""

import logging
import os
from collections.abc import Collection, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

from multus.cni import document
from multus.cni.args import Pairs, encode_args
from multus.cni.document import Document, DocumentError
from multus.cni.errors import CNIError
from multus.cni.result import MAX_RESULT, encode_result, parse_result
from multus.cni.versions import SUPPORTED
from multus.files import FileError, read_small

logger = logging.getLogger(__name__)

MAX_FILE: Final = 16 * 1024 * 1024
_KIND: Final = "cniCacheV1"

T = TypeVar("T")


class Delegate(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a pod, as it was about to be attached; `conf` is its configuration as JSON.

    `network` is "namespace/name" for a NetworkAttachmentDefinition. `ifname` is "" unless one was asked for. Port
    mappings and bandwidth are not in the file.
    """

    network: str
    ifname: str = ""
    mac: str = ""
    ips: tuple[str, ...] = ()
    guid: str = ""
    device_id: str = ""
    resource: str = ""
    conf: bytes


class Kept(msgspec.Struct, frozen=True, kw_only=True):
    """What libcni kept of one attachment: what it was called with, and what came of it.

    `args` is None when they cannot be used. `result` is in CNI 1.1.0, None when there is none. Only `result` is there
    if the file is of libcni 0.7 or older; `network` and `ifname` then come from its name.
    """

    container_id: str
    network: str
    ifname: str
    netns: str = ""
    conf: bytes = b""
    args: Pairs | None = None
    runtime: dict[str, Any] = {}
    result: bytes | None = None


class _Delegate(msgspec.Struct):
    """What is not here (Conf, ConfList) is a lossy copy of Bytes."""

    conf: bytes = msgspec.field(name="Bytes")
    name: str | None = msgspec.field(name="Name", default=None)
    ifname: str | None = msgspec.field(name="ifnameRequest", default=None)
    mac: str | None = msgspec.field(name="macRequest", default=None)
    guid: str | None = msgspec.field(name="infinibandGUIDRequest", default=None)
    ips: list[str] | None = msgspec.field(name="ipRequest", default=None)
    device_id: str | None = msgspec.field(name="deviceID", default=None)
    resource: str | None = msgspec.field(name="resourceName", default=None)


def read_delegates(path: Path) -> Sequence[Delegate | None] | None:
    """A pod's networks by position, None for one that cannot be read; None when there is no list at all."""
    try:
        data = read_small(path, limit=MAX_FILE)
    except FileError as error:
        if not error.missing:
            logger.warning("%s", error)
        return None
    try:
        listed = document.value(data, list[msgspec.Raw])
    except DocumentError as error:
        logger.warning("%s was cut short, perhaps by a power cut (%s): libcni's results tell the rest", path, error)
        return None
    if not listed:
        logger.warning("%s lists no network", path)
        return None
    return [_delegate(bytes(raw), f"{path}, network {index}") for index, raw in enumerate(listed)]


def read_kept(path: Path, container_id: str) -> Kept | None:
    """What libcni kept in that file; None when it cannot be read, and when it is another container's."""
    try:
        body = document.decode(read_small(path, limit=MAX_FILE))
    except (FileError, DocumentError) as error:
        logger.warning("libcni's result %s: %s", path, error)
        return None
    network, _, ifname = path.name.rpartition(f"-{container_id}-")
    if _lenient(body, "kind", str) != _KIND:
        result = _result(document.encode(body), path)
        return Kept(container_id=container_id, network=network, ifname=ifname, result=result) if result else None
    if _lenient(body, "containerId", str) != container_id:
        return None
    raw = document.member(body, "result")
    return Kept(
        container_id=container_id,
        network=_lenient(body, "networkName", str) or network,
        ifname=_lenient(body, "ifName", str) or ifname,
        netns=_lenient(body, "netns", str) or "",
        conf=_lenient(body, "config", bytes) or b"",
        args=_args(body),
        runtime=_runtime(body),
        result=_result(bytes(raw), path) if raw is not None else None,
    )


def owner(path: Path) -> str | None:
    """The container that the file says it is of, None when it does not say.

    :raises FileError: it cannot be read.
    """
    try:
        return _lenient(document.decode(read_small(path, limit=MAX_FILE)), "containerId", str)
    except DocumentError:
        return None


def result_names(directory: Path, container_ids: Collection[str]) -> dict[str, list[str]]:
    """Names of the results files that may be each container's; hundreds of thousands of others may lie beside them."""
    try:
        names = os.listdir(directory)  # noqa: PTH208 (names alone: half the time of a Path each)
    except FileNotFoundError:
        return {}
    except OSError as error:
        logger.warning("libcni's results in %s cannot be listed: %s", directory, error.strerror or error)
        return {}
    if len(container_ids) == 1:
        (container_id,) = container_ids
        return {container_id: [name for name in names if f"-{container_id}-" in name]}
    found: dict[str, list[str]] = {}
    for name in names:
        dashes = [index for index, letter in enumerate(name) if letter == "-"]
        # An id may have hyphens, as may a network and an interface: each stretch between two of them is a candidate.
        for start, end in combinations(dashes, 2):
            if (candidate := name[start + 1 : end]) in container_ids:
                found.setdefault(candidate, []).append(name)
    return found


def _delegate(data: bytes, where: str) -> Delegate | None:
    try:
        wire = document.value(data, _Delegate)
    except DocumentError as error:
        logger.warning("%s: %s", where, error)
        return None
    return Delegate(
        network=wire.name or "",
        ifname=wire.ifname or "",
        mac=wire.mac or "",
        ips=tuple(wire.ips or ()),
        guid=wire.guid or "",
        device_id=wire.device_id or "",
        resource=wire.resource or "",
        conf=wire.conf,
    )


def _lenient(body: Document, key: str, kind: type[T]) -> T | None:
    raw = document.member(body, key)
    try:
        return None if raw is None else document.value(raw, kind)
    except DocumentError:
        return None


def _args(body: Document) -> Pairs | None:
    pairs = _lenient(body, "cniArgs", tuple[tuple[str, str], ...])
    if pairs is None:
        return None
    try:
        encode_args(pairs)
    except CNIError:
        return None
    return pairs


def _runtime(body: Document) -> dict[str, Any]:
    given = _lenient(body, "capabilityArgs", dict[str, Any]) or {}
    try:
        msgspec.json.encode(given)  # JSON may hold numbers that nothing here could write again
    except (ValueError, TypeError, OverflowError, RecursionError):
        return {}
    return given


def _result(data: bytes, path: Path) -> bytes | None:
    if len(data) > MAX_RESULT:
        return None
    try:
        return encode_result(parse_result(data, where=str(path)), SUPPORTED[-1])
    except (CNIError, ValueError) as error:
        logger.warning("%s; the DEL goes on without it", error)
        return None
