"""Device-info documents on disk: what is known of a device, for the delegate that attaches it and for the pod.

They are written when a device is given out and stay when this program ends: those of running pods are read when their
networks are attached anew. Upstream removes all of them at each start.
"""

import contextlib
import os
import re
import tempfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

from devices.errors import DeviceError
from devices.kubelet.allocate import Grant, device_info, info_name

FOLDER: Final = "dp"
"""Below the directory of device information: what device plugins write."""

_MODE: Final = 0o444
_ENDING: Final = re.compile(r"-([0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7])-device\.json\Z")


class InfoError(DeviceError):
    """A document that cannot be written; trying again may help."""

    retry = True


def write_info(directory: Path, resource: str, grant: Grant) -> Path:
    """Write the document of a device that is given out, whole or not at all. Blocks.

    :raises InfoError: it cannot be written.
    """
    path = directory / FOLDER / info_name(resource, grant.id)
    try:
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(device_info(grant))
            os.chmod(temporary, _MODE)  # noqa: PTH101 (a plain name)
            Path(temporary).replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                Path(temporary).unlink()
            raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise InfoError(
            f"device information cannot be written to {path}: {reason}",
            hint="deviceInfoDir must be a directory that root can write",
        ) from None
    return path


def remove_stale(directory: Path, resources: Collection[str], members: Mapping[str, str], used: Collection[str]) -> int:
    """Remove documents of these resources for devices that are in another pool now, or in none; how many. Blocks.

    `members` are the pools' devices, each with its resource. What pods use keeps its documents, and so do resources
    that are not among these: other device plugins write here too.

    :raises InfoError: one cannot be removed.
    """
    folder, removed = directory / FOLDER, 0
    ours = {resource.replace("/", "-"): resource for resource in resources}
    try:
        for name in os.listdir(folder):  # noqa: PTH208 (names alone are wanted, of perhaps 512)
            found = _ENDING.search(name)
            resource = ours.get(name[: found.start()]) if found else None
            if found and resource and found[1] not in used and members.get(found[1]) != resource:
                (folder / name).unlink(missing_ok=True)
                removed += 1
    except FileNotFoundError:
        return removed
    except OSError as error:
        raise InfoError(f"stale device information stays in {folder}: {error.strerror or error}") from None
    return removed
