"""Device-info files: what a device plugin tells of a device, handed to the delegate that attaches it and to the pod.

Source: Device Information Specification 1.1.0. The device plugin writes `dp/<resource>-<device>-device.json`, we copy
it to `cni/<network>-<container>_<interface>` for the delegate, which may rewrite it, and remove it with the attachment.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import msgspec

from multus.files import FileError, read_small, remove, replace

logger = logging.getLogger(__name__)

DIRECTORY: Final = Path("/var/run/k8s.cni.cncf.io/devinfo")
CNI_DIRECTORY: Final = DIRECTORY / "cni"

_LIMIT = 64 * 1024  # bytes; a device's information has a few hundred
_MODE = 0o444
_LONGEST = 200  # bytes of a file name: the file system takes 255, and a temporary file has a longer one


def cni_file_name(network: str, container_id: str, ifname: str) -> str:
    """The name of an attachment's file. One too long for a file system ends in a digest of all of it instead."""
    return _shortened(_component(f"{network}-{container_id}_{ifname}"))


def device_file_name(resource: str, device_id: str) -> str:
    """The name of the file that a device plugin writes for a device."""
    return _component(f"{resource}-{device_id}-device.json")


def publish(directory: Path, resource: str, device_id: str, name: str) -> None:
    """Copy what the device plugin told of the device to the attachment's file `name`; blocks.

    A device plugin need not tell anything. What it tells is for information, so no attachment fails for a file that
    cannot be copied: the log says so. A file that a crash left behind is replaced.
    """
    target = _cni_file(directory, name)
    source = directory / "dp" / device_file_name(resource, device_id)
    try:
        told = read_small(source, limit=_LIMIT)
        _decode(told)
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        replace(target, told, mode=_MODE)
    except FileError as error:
        if not error.missing:
            logger.warning("device information of %s %s is not passed on: %s", resource, device_id, error)
    except (ValueError, OSError) as error:
        logger.warning("device information in %s is not passed on: %s", source, error)


def withdraw(directory: Path, name: str) -> None:
    """Remove the attachment's file, if there is one; blocks.

    :raises FileError: it cannot be removed.
    """
    remove(_cni_file(directory, name))


async def read(directory: Path, name: str) -> dict[str, Any] | None:
    """What the attachment's file says: the device plugin's words, or the delegate's. None without a usable file."""
    return await anyio.to_thread.run_sync(_read, _cni_file(directory, name))


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return _decode(read_small(path, limit=_LIMIT))
    except FileError as error:
        if not error.missing:
            logger.warning("device information is left out of the status: %s", error)
    except ValueError as error:
        logger.warning("device information in %s is left out of the status: %s", path, error)
    return None


def _decode(data: bytes) -> dict[str, Any]:
    """:raises ValueError: for anything but a JSON object."""
    try:
        return msgspec.json.decode(data, type=dict[str, Any])
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _cni_file(directory: Path, name: str) -> Path:
    return directory / "cni" / _shortened(_component(name))


def _component(name: str) -> str:
    """One component of a path, whatever the name: a hyphen for each slash, as upstream writes it."""
    plain = name.replace("/", "-").replace("\0", "-").encode(errors="replace").decode()
    return "-" if plain in ("", ".", "..") else plain


def _shortened(name: str) -> str:
    encoded = name.encode()
    if len(encoded) <= _LONGEST:
        return name
    digest = hashlib.sha256(encoded).hexdigest()[:32]
    return encoded[: _LONGEST - len(digest) - 1].decode(errors="ignore") + "-" + digest
