"""What `multusctl doctor` looks at: each function finds out about one part of a node, and changes nothing."""

import json
import socket
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Final, Literal

import msgspec

from dpdk.hugepages import read_pages, size_text
from multus.cli.ready import ask
from multus.cli.runtime import conf_in_force
from multus.cni.conf import parse_conf
from multus.cni.network import ConfError
from multus.errors import MultusError
from multus.files import FileError, read_small
from multus.install.binary import NAMES, shim_version
from multus.install.generate import calls_us
from multus.journal import read_journal
from multus.sandbox import State

_MAX_SHIM: Final = 64 * 1024 * 1024
_PATIENCE: Final = 5.0  # seconds


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that was looked at; `advice` is what to do about it."""

    what: str
    level: Literal["ok", "note", "wrong"] = "ok"
    advice: str = ""


def configuration(directory: Path) -> Iterator[Finding]:
    """Whether runtimes call us: they take the first configuration by name."""
    try:
        data, path = conf_in_force(directory)
    except MultusError as error:
        advice = "multusd writes one as soon as the default network has its own: look at its log"
        yield Finding(level="wrong", what=error.message, advice=advice)
        return
    try:
        conf = parse_conf(data, where=path)
        ours = calls_us(conf)
    except ConfError as error:
        yield Finding(level="wrong", what=f"the first configuration cannot be used: {error.message}", advice=error.hint)
        return
    if ours:
        yield Finding(what=f"{path} is in force, and calls multus")
        yield from _network(conf.plugins[0].body.get("clusterNetwork"))
        return
    later = [each.name for each in sorted(directory.glob("*multus*")) if str(each) != path]
    advice = (
        f"it comes before {later[0]}: rename or remove it" if later else "is multusd running, and may it write there?"
    )
    yield Finding(level="wrong", what=f"{path} is in force, and does not call multus", advice=advice)


def _network(name: object) -> Iterator[Finding]:
    """The default network, where it is a file."""
    text = bytes(name).decode() if isinstance(name, msgspec.Raw) else name
    text = json.loads(text) if isinstance(text, str) and text.startswith('"') else text
    if isinstance(text, str) and text.startswith("/"):
        if Path(text).exists():
            yield Finding(what=f"the default network is {text}")
        else:
            yield Finding(
                level="wrong", what=f"the default network's {text} is gone", advice="install the default network again"
            )


def shim(directory: Path) -> Iterator[Finding]:
    """The program that runtimes start, against this release."""
    own, found = version("multus"), False
    for name in NAMES:
        try:
            there = shim_version(read_small(directory / name, limit=_MAX_SHIM))
        except FileError as error:
            if not error.missing:
                yield Finding(level="wrong", what=error.message, advice=error.hint or "run as root")
            continue
        found = True
        if not (directory / name).stat().st_mode & 0o111:
            yield Finding(level="wrong", what=f"{directory / name} cannot be executed", advice="multusctl install")
        elif not there:
            yield Finding(
                level="wrong", what=f"{directory / name} is another program", advice="multusctl install sets it aside"
            )
        elif there != own:
            advice = "multusctl install; until then an older shim is served all the same"
            yield Finding(level="wrong", what=f"{directory / name} is {there}, this release is {own}", advice=advice)
        else:
            yield Finding(what=f"{directory / name} is {there}, as this release")
    if not found:
        yield Finding(level="wrong", what=f"there is no shim in {directory}", advice="multusctl install")


def daemon(path: Path) -> Iterator[Finding]:
    """Whether multusd answers, and can serve."""
    good, said = ask(path, timeout=_PATIENCE)
    if good:
        yield Finding(what=f"multusd answers on {path} and is ready")
    else:
        yield Finding(
            level="wrong", what=f"multusd answers on {path}, but is not ready: {said}", advice="look at its log"
        )


def state(directory: Path) -> Iterator[Finding]:
    """The journal and the stored DELs: what was promised and is not done yet."""
    if not directory.is_dir():
        yield Finding(level="wrong", what=f"{directory} is not there", advice="multusd makes it: has it ever run here?")
        return
    sandboxes = read_journal(directory / "journal.db")
    held = [each for each in sandboxes if each.state == State.ATTACHED]
    yield Finding(what=f"the journal holds {len(held)} pod{'' if len(held) == 1 else 's'} with networks")
    for each in sandboxes:
        if each.state == State.DELETING and each.failures:
            yield Finding(
                level="wrong",
                what=f"{each.pod_namespace}/{each.pod_name} ({each.container_id[:13]}) could not be taken down in "
                f"{each.failures} tries: {', '.join(item.network for item in each.attachments)}",
                advice="multusd goes on trying; its log says what the plugin answers",
            )
        elif each.state != State.ATTACHED:
            what = f"{each.pod_namespace}/{each.pod_name} ({each.container_id[:13]}) is {each.state}"
            yield Finding(level="note", what=what)
        elif each.status is not None:
            what = f"{each.pod_namespace}/{each.pod_name} has yet to be told its network-status"
            yield Finding(level="wrong", what=what, advice="does the API server take patches of pods/status?")
    spool = directory / "spool"
    waiting = [each for each in spool.iterdir() if not each.name.startswith(".")] if spool.is_dir() else []
    if waiting:
        advice = "they are carried out when multusd runs; what is set aside there was no DEL, and may be removed"
        yield Finding(level="wrong", what=f"{len(waiting)} stored DELs in {spool}", advice=advice)


async def api_server(kubeconfig: str, node: str) -> list[Finding]:
    """Whether the API server answers, and lets us do what we have to."""
    from multus.cli.rights import rights
    from multus.kube.api import Api
    from multus.kube.errors import ClusterError
    from multus.kube.requests import all_nads, list_page, pods_on

    asked = [("networks", all_nads())]
    found = []
    if node:
        asked.append((f"pods of node {node}", pods_on(node)))
    else:
        found.append(Finding(level="wrong", what="the node's name is not known", advice='set "nodeName"'))
    async with Api.open(kubeconfig) as api:
        for what, collection in asked:
            try:
                await api.read(list_page(collection, limit=1), within=_PATIENCE)
                found.append(Finding(what=f"the API server lists {what}"))
            except ClusterError as error:
                found.append(Finding(level="wrong", what=error.message, advice=error.hint))
        return [*found, *await rights(api, node)]


def kubelet(directory: Path, *, needed: bool) -> Iterator[Finding]:
    """The kubelet's sockets: without the first, pods get no devices; the second is for offering them."""
    for name, use in (("pod-resources", "which devices pods were given"), ("device-plugins", "offering devices")):
        path = directory / name / "kubelet.sock"
        try:
            with socket.socket(socket.AF_UNIX) as client:
                client.settimeout(_PATIENCE)
                client.connect(str(path))
            yield Finding(what=f"{path} answers ({use})")
        except OSError as error:
            advice = f"needed for {use}: is kubeletDir right, and is {name} mounted into the daemon's pod?"
            level: Literal["note", "wrong"] = "wrong" if needed else "note"
            yield Finding(level=level, what=f"{path}: {error.strerror or error}", advice=advice if needed else "")


def hardware(sysfs: Path) -> Iterator[Finding]:
    """What SR-IOV and DPDK would find here. None of it is wrong on a node without them."""
    groups = sysfs / "kernel/iommu_groups"
    if groups.is_dir() and any(groups.iterdir()):
        yield Finding(what=f"IOMMU: on, {len(list(groups.iterdir()))} groups")
    else:
        advice = "for DPDK: switch it on in the firmware, and boot with intel_iommu=on or amd_iommu=on"
        yield Finding(level="note", what="IOMMU: off", advice=advice)
    pages = [each for each in read_pages(sysfs) if each.total]
    for each in pages:
        what = (
            f"hugepages: {each.free} of {each.total} pages of {size_text(each.size_kb)} free on NUMA node {each.node}"
        )
        yield Finding(what=what)
    if not pages:
        yield Finding(
            level="note", what="hugepages: none", advice="for DPDK: boot with hugepagesz=1G hugepages=4 or the like"
        )
    nics = [each.parent.name for each in sorted((sysfs / "bus/pci/devices").glob("*/sriov_totalvfs"))]
    yield Finding(level="note", what=f"SR-IOV: {', '.join(nics) or 'no NIC that can'}")
