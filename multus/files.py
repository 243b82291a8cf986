"""Small files of a node: read with a size limit, replaced so that a reader sees the old or the new one, never half."""

import contextlib
import errno
import os
import secrets
import stat
from pathlib import Path
from typing import ClassVar, Final

from multus.errors import Fault, MultusError

TEMP_MARK: Final = ".multus-tmp"
"""In the name of every temporary file of ours, so that what a crash left can be told and removed."""


class FileError(MultusError):
    """A file that cannot be read or written; `missing` when it is not there."""

    fault: ClassVar[Fault] = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", missing: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.missing = missing


def read_small(path: Path, *, limit: int) -> bytes:
    """The content of a regular file of at most `limit` bytes; never blocks on a fifo or a device.

    :raises FileError: absent, unreadable, not a regular file, or larger.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
        try:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise FileError(f"{path} is not a regular file")
            with os.fdopen(descriptor, "rb", closefd=False) as file:  # it refuses a directory, hence only now
                data = file.read(limit + 1)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise _refused(path, "read", error) from None
    except ValueError:
        raise _no_path(path) from None
    if len(data) > limit:
        raise FileError(f"{path} is larger than {limit} bytes", hint="this is not a file that belongs here")
    return data


def replace(path: Path, data: bytes, *, mode: int) -> None:
    """Put `data` at `path` durably: temporary file beside it, fsync, rename, fsync of the directory.

    A running binary can be replaced so ("text file busy" comes of writing into it), and readers never see half.

    :raises FileError: the directory is missing, read-only or full; the old file then stands untouched.
    """
    # Random, as in containers every process may have the same number, and two of them one directory.
    mark = f"{TEMP_MARK}-{os.getpid()}-{secrets.token_hex(4)}"
    try:
        temporary = path.with_name(f".{path.name}{mark}")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(descriptor, mode)  # the umask has no say
                file.write(data)
                file.flush()
                os.fsync(descriptor)
            temporary.replace(path)
        except OSError:
            with contextlib.suppress(OSError):  # a disk that fails to write may fail here as well
                temporary.unlink()
            raise
        sync_directory(path.parent)
    except OSError as error:
        raise _refused(path, "write", error) from None
    except ValueError:
        raise _no_path(path) from None


def remove(path: Path) -> bool:
    """Remove a file durably; False when it was not there.

    :raises FileError: it could not be removed.
    """
    try:
        path.unlink()
        sync_directory(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError as error:
        raise _refused(path, "remove", error) from None
    except ValueError:
        raise _no_path(path) from None
    return True


def sync_directory(path: Path) -> None:
    """Make renames and removals in a directory survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _no_path(path: Path) -> FileError:
    return FileError(f"not a path to a file: {str(path)!r}")


def _refused(path: Path, what: str, error: OSError) -> FileError:
    hints = {
        errno.EROFS: "the file system is mounted read-only",
        errno.ENOSPC: "the file system is full",
        errno.EACCES: "run as root, or check the mount",
    }
    missing = error.errno in (errno.ENOENT, errno.ENOTDIR)
    reason = error.strerror or str(error)
    return FileError(f"cannot {what} {path}: {reason}", hint=hints.get(error.errno or 0, ""), missing=missing)
