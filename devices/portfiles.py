"""Files for a DPDK program, one folder a device: made when the device is given out, mounted into the container that
gets it, and filled when the pod's networks are known, which is before the container starts.

All of a pod's devices have the same files, so that a container finds them by whichever it has.
"""

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from devices.errors import DeviceError
from devices.linux.pci_address import parse_address

FOLDER: Final = "dpdk"
"""Below the directory of device information."""
MAP: Final = "map.json"
EAL: Final = "eal"
PORTS: Final = "ports"
_ALL: Final = (MAP, EAL, PORTS)
_MODE: Final = 0o444


class PortFilesError(DeviceError):
    """The files of a device cannot be written or removed; trying again may help."""

    retry = True


def folder(directory: Path, bdf: str) -> Path:
    """Where the files of a device are.

    :raises AddressError: it is no PCI address, which other device plugins' devices may not have.
    """
    return directory / FOLDER / parse_address(bdf)


def prepare(directory: Path, bdf: str) -> Path:
    """The device's folder, without what an earlier pod had there. Blocks.

    :raises PortFilesError: it cannot be made.
    """
    path = folder(directory, bdf)
    with _told(path):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name in _ALL:
            (path / name).unlink(missing_ok=True)
    return path


def write(directory: Path, bdf: str, files: Mapping[str, bytes]) -> None:
    """Put files into the device's folder, each whole or not at all. Blocks.

    :raises PortFilesError: one cannot be written.
    """
    path = folder(directory, bdf)
    with _told(path):
        path.mkdir(mode=0o755, parents=True, exist_ok=True)
        for name, data in files.items():
            _replace(path / name, data)


def read(directory: Path, bdf: str, name: str, *, limit: int) -> bytes:
    """A file, at most `limit` bytes of it; nothing when there is none. Blocks.

    :raises PortFilesError: it cannot be read.
    """
    path = folder(directory, bdf) / name
    with _told(path):
        try:
            with path.open("rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return b""


def clear(directory: Path, bdf: str) -> None:
    """Remove the files; the folder stays, for a container that is being made may have it mounted. Blocks.

    :raises PortFilesError: one cannot be removed.
    """
    path = folder(directory, bdf)
    with _told(path):
        for name in _ALL:
            (path / name).unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        os.chmod(temporary, _MODE)  # noqa: PTH101 (a plain name)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


@contextlib.contextmanager
def _told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise PortFilesError(
            f"files for DPDK in {path}: {error.strerror or error}",
            hint="deviceInfoDir must be a directory that root can write",
        ) from None
