"""What an earlier Multus left in its state directory, so that a node changes over with its pods running.

`<cniDir>/<container id>` lists the networks of a pod, `<cniDir>/results/<network>-<container id>-<interface>` is what
libcni kept of each that was attached. Neither was written atomically: after a power cut either may be cut short, or
empty. What one does not tell, the other often does. Everything here blocks.
"""

import logging
import os
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from devices.errors import DeviceError
from devices.linux.netns import identity
from multus import devinfo
from multus.cni import document
from multus.cni.args import Pairs
from multus.cni.conf import ConfError, NetworkConf, encode_conf, parse_conf, refuse_recursion, with_cni_version
from multus.cni.errors import CNIError
from multus.cni.request import (
    PodRef,
    Request,
    ValidAttachment,
    check_container_id,
    check_ifname,
    delegate_args,
    pod_ref,
)
from multus.cni.versions import SUPPORTED
from multus.errors import MultusError
from multus.files import FileError, remove
from multus.legacy_files import Delegate, Kept, owner, read_delegates, read_kept, result_names
from multus.sandbox import Attachment, Sandbox, State

logger = logging.getLogger(__name__)

RESULTS: Final = "results"

_OUR_OWN = re.compile(r"journal\.db.*|multusd\.lock|spool|results")  # same directory; no container's, whatever its id
_NUMBERED = re.compile(r"net([0-9]{1,6})")


class _Container(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a container. `whole`: each of its networks is in `attachments`, none was left out."""

    attachments: tuple[Attachment, ...]
    kept: tuple[Kept, ...]
    whole: bool


def load_sandbox(cni_dir: Path, request: Request, boot_id: str) -> Sandbox | None:
    """What a DEL has to undo for a container of an earlier Multus, None when nothing usable was left of it."""
    container_id = request.container_id
    pod = _pod(request.args)
    names = result_names(cni_dir / RESULTS, (container_id,)).get(container_id, [])
    args = delegate_args(pod, request.args)
    found = _container(cni_dir, container_id, request.ifname, names, args=args, version=_version(request.conf))
    if not found.attachments:
        return None
    pod = pod or next((ref for ref in map(_pod, (each.args or () for each in found.kept)) if ref), None)
    netns, netns_id = _alive(request.netns)
    return _sandbox(container_id, request.ifname, State.DELETING, pod, boot_id, found, netns, netns_id)


def load_sandboxes(cni_dir: Path, valid: Iterable[ValidAttachment], boot_id: str) -> list[Sandbox]:
    """Containers of an earlier Multus that still run, for a GC to spare.

    A container of which anything is missing is not among them: whoever collects garbage must take it for one that it
    knows nothing of, since what is missing may be a network whose address it would otherwise free.
    """
    keys = list(dict.fromkeys((item.container_id, item.ifname) for item in valid if _sane(item)))
    names = result_names(cni_dir / RESULTS, {container_id for container_id, _ in keys})
    sandboxes = []
    for container_id, ifname in keys:
        found = _container(cni_dir, container_id, ifname, names.get(container_id, []), args=(), version="")
        if not found.whole:
            if found.attachments:
                logger.warning("container %s: its networks are not all known; garbage is left alone", container_id)
            continue
        pod = next((ref for ref in map(_pod, (each.args or () for each in found.kept)) if ref), None)
        netns = next((each.netns for each in found.kept if each.netns), "")
        sandboxes.append(_sandbox(container_id, ifname, State.ATTACHED, pod, boot_id, found, netns, ""))
    return sandboxes


def remove_legacy(cni_dir: Path, container_id: str) -> None:
    """Remove what was left of a container whose networks are all gone. What cannot be removed is logged."""
    if check_container_id(container_id) or _OUR_OWN.fullmatch(container_id):
        return
    directory = cni_dir / RESULTS
    try:
        remove(cni_dir / container_id)
        for name in result_names(directory, (container_id,)).get(container_id, ()):
            if owner(directory / name) in (None, container_id):
                remove(directory / name)
    except FileError as error:
        logger.warning("what an earlier Multus left of container %s stays: %s", container_id, error)


def _sane(item: ValidAttachment) -> bool:
    return not check_container_id(item.container_id) and not check_ifname(item.ifname)


def _container(
    cni_dir: Path, container_id: str, ifname: str, names: Collection[str], *, args: Pairs, version: str
) -> _Container:
    """Everything that the files say of one container. `args` and `version` stand in for what they do not say."""
    results = {name: read_kept(cni_dir / RESULTS / name, container_id) for name in sorted(names)}
    kept = {(each.network, each.ifname): each for each in results.values() if each is not None}
    listed = None if _OUR_OWN.fullmatch(container_id) else read_delegates(cni_dir / container_id)
    attachments: list[Attachment] = []
    told: set[str] = set()  # names of results files that the list accounts for
    for position, delegate in enumerate(listed or ()):
        if delegate is None:
            continue
        name = delegate.ifname or (ifname if position == 0 else f"net{position}")
        conf = _usable(delegate.conf, version, f"network {delegate.network or position} of container {container_id}")
        own = kept.pop((conf.name, name), None) if conf is not None else None
        if own is not None and own.conf:
            conf = _usable(own.conf, version, f"libcni's record of network {own.network}") or conf
        if conf is None or _bad_name(name, container_id):
            continue
        told.add(f"{conf.name}-{container_id}-{name}")
        attachments.append(_attachment(container_id, position, name, conf, delegate, own, args))
    # Networks that the list does not have: it was cut short, or they came later by hot plug.
    more = sorted((each for each in kept.values() if each.conf), key=lambda each: _rank(each.ifname, ifname))
    start = len(listed or ())
    for position, own in enumerate(more, start):
        conf = _usable(own.conf, version, f"libcni's record of network {own.network}")
        if conf is not None and not _bad_name(own.ifname, container_id):
            attachments.append(_attachment(container_id, position, own.ifname, conf, None, own, args))
    unknown = {name for name, each in results.items() if each is None and not _foreign(cni_dir, name, container_id)}
    unknown |= {f"{each.network}-{container_id}-{each.ifname}" for each in kept.values() if not each.conf}
    whole = listed is not None and len(attachments) == start + len(more) and unknown <= told
    return _Container(
        attachments=_in_order(attachments), kept=tuple(each for each in results.values() if each), whole=whole
    )


def _attachment(
    container_id: str,
    position: int,
    ifname: str,
    conf: NetworkConf,
    delegate: Delegate | None,
    kept: Kept | None,
    args: Pairs,
) -> Attachment:
    network = (delegate.network if delegate else "") or conf.name
    runtime = kept.runtime if kept is not None and kept.conf else _runtime(delegate, position)
    resource = delegate.resource if delegate and delegate.device_id else ""
    info = os.path.basename(str(runtime.get("CNIDeviceInfoFile", "")))  # noqa: PTH119 (hostile: a NUL is no path)
    if not info.endswith(f"-{container_id}_{ifname}"):
        info = devinfo.cni_file_name(network, container_id, ifname) if resource else ""
    return Attachment(
        position=position,
        network=network,
        ifname=ifname,
        conf=encode_conf(conf),
        args=args if kept is None or kept.args is None else kept.args,
        runtime=runtime,
        device_id=delegate.device_id if delegate and resource else "",
        resource=resource,
        default=position == 0,
        device_info=info,
        result=kept.result if kept else None,
    )


def _runtime(delegate: Delegate | None, position: int) -> dict[str, Any]:
    """The capability arguments as far as the list has them; the default network got the runtime's alone."""
    if delegate is None or position == 0:
        return {}
    asked = {
        "mac": delegate.mac,
        "ips": list(delegate.ips),
        "infinibandGUID": delegate.guid,
        "deviceID": delegate.device_id,
    }
    return {key: value for key, value in asked.items() if value}


def _in_order(attachments: list[Attachment]) -> tuple[Attachment, ...]:
    """Each after the one before it: they were attached in that order, and are taken down strictly in reverse."""
    return tuple(
        msgspec.structs.replace(item, after=(attachments[index - 1].position,) if index else ())
        for index, item in enumerate(attachments)
    )


def _sandbox(
    container_id: str,
    ifname: str,
    state: State,
    pod: PodRef | None,
    boot_id: str,
    found: _Container,
    netns: str,
    netns_id: str,
) -> Sandbox:
    return Sandbox(
        container_id=container_id,
        ifname=ifname,
        state=state,
        netns=netns,
        netns_id=netns_id,
        boot_id=boot_id,
        pod_namespace=pod.namespace if pod else "",
        pod_name=pod.name if pod else "",
        pod_uid=pod.uid if pod else "",
        attachments=found.attachments,
    )


def _usable(data: bytes, version: str, where: str) -> NetworkConf | None:
    """A configuration that a plugin can be called with; a list without a version is in `version`, as it was then."""
    try:
        conf = parse_conf(data, where=where)
        refuse_recursion(conf)
        if not conf.name:
            raise ConfError(f"{where}: it has no name")
        if conf.is_list and not conf.cni_version and version:
            conf = with_cni_version(conf, version)
    except ConfError as error:
        logger.warning("left out of what an earlier Multus attached: %s", error)
        return None
    return conf


def _bad_name(ifname: str, container_id: str) -> bool:
    problem = check_ifname(ifname)
    if problem:
        logger.warning("left out of container %s: interface %r: %s", container_id, ifname[:40], problem)
    return bool(problem)


def _rank(ifname: str, first: str) -> tuple[int, int, str]:
    """Where an interface stood, by its name: the runtime's own, net1, net2, net10, then those with other names."""
    numbered = _NUMBERED.fullmatch(ifname)
    if ifname == first:
        return 0, 0, ""
    return (1, int(numbered[1]), ifname) if numbered else (2, 0, ifname)


def _foreign(cni_dir: Path, name: str, container_id: str) -> bool:
    try:
        return owner(cni_dir / RESULTS / name) not in (None, container_id)
    except FileError:
        return False


def _pod(args: Pairs) -> PodRef | None:
    try:
        return pod_ref(args)
    except CNIError:
        return None


def _version(conf: bytes) -> str:
    """The cniVersion of the configuration that we were called with, "" for none that can be used."""
    try:
        raw = document.member(document.decode(conf), "cniVersion")
        version = "" if raw is None else document.value(raw, str)
        return version if version in SUPPORTED else ""
    except MultusError:
        return ""


def _alive(netns: str) -> tuple[str, str]:
    """The namespace and what identifies it, so that a DEL that is retried never enters another at the same path."""
    try:
        found = identity(netns) if netns else None
    except DeviceError as error:
        logger.warning("%s", error)
        return netns, ""
    return (netns, found) if found else ("", "")
