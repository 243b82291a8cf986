"""The kubelet's device manager checkpoint: for a kubelet that serves no PodResources, or does not answer.

Its checksum is not verified: it is a hash over a dump of Go structs, which changes with the kubelet's version.
"""

from pathlib import Path
from typing import Final

import msgspec

from devices.kubelet.allocation import ContainerDevices, gathered
from devices.kubelet.errors import KubeletError

FILE: Final = "device-plugins/kubelet_internal_checkpoint"
"""Below the kubelet's directory."""

MAX_SIZE: Final = 64 * 1024 * 1024


class _Entry(msgspec.Struct):
    """One container's devices of one resource. DeviceIDs is by NUMA node since Kubernetes 1.20, a list before."""

    uid: str = msgspec.field(name="PodUID")
    container: str = msgspec.field(name="ContainerName")
    resource: str = msgspec.field(name="ResourceName")
    ids: dict[str, list[str] | None] | list[str] | None = msgspec.field(name="DeviceIDs", default=None)


class _Data(msgspec.Struct):
    entries: list[_Entry] | None = msgspec.field(name="PodDeviceEntries", default=None)


class _Checkpoint(msgspec.Struct):
    data: _Data = msgspec.field(name="Data")


_DECODER = msgspec.json.Decoder(_Checkpoint)


def read_checkpoint(path: Path, uid: str) -> tuple[ContainerDevices, ...]:
    """What the pod of that uid holds, containers sorted by name: the file has them in random order. Blocks.

    :raises KubeletError: no uid, or no checkpoint that can be read.
    """
    if not uid:
        raise KubeletError(f"{path} was asked for a pod without its UID", hint="the runtime should set K8S_POD_UID")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_SIZE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise KubeletError(
            f"error reading file {path}: {reason}", hint="is the kubelet's directory mounted into this pod?"
        ) from None
    if len(data) > MAX_SIZE:
        raise KubeletError(f"{path} is larger than {MAX_SIZE} bytes")
    return decode_checkpoint(data, uid, where=str(path))


def decode_checkpoint(data: bytes, uid: str, *, where: str) -> tuple[ContainerDevices, ...]:
    """As `read_checkpoint`, from the file's content.

    :raises KubeletError: it is no checkpoint.
    """
    try:
        checkpoint = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise KubeletError(
            f"{where} is no device checkpoint: {reason}", hint="the kubelet writes it anew when a device is allocated"
        ) from None
    mine = [entry for entry in checkpoint.data.entries or () if entry.uid == uid]
    return tuple(
        ContainerDevices(
            container=name, devices=gathered((each.resource, _ids(each)) for each in mine if each.container == name)
        )
        for name in sorted({entry.container for entry in mine})
    )


def _ids(entry: _Entry) -> list[str]:
    if isinstance(entry.ids, dict):
        return [device for ids in entry.ids.values() for device in ids or ()]
    return entry.ids or []
