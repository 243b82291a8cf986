"""System calls that Python 3.11 has no function for; each raises OSError, and lets other threads run meanwhile."""

import ctypes
import os

CLONE_NEWNET = 0x40000000
_CLONE_FS = 0x200

_MS_BIND, _MS_REC, _MS_SHARED = 0x1000, 0x4000, 0x100000
_MNT_DETACH = 2

_libc = ctypes.CDLL(None, use_errno=True)


def enter(descriptor: int) -> None:
    """Move the calling thread into the network namespace of an open file."""
    _call("setns", ctypes.c_int(descriptor), ctypes.c_int(CLONE_NEWNET))


def leave() -> None:
    """Move the calling thread into a network namespace of its own."""
    _call("unshare", ctypes.c_int(CLONE_NEWNET))


def own_directories() -> None:
    """Give the calling thread a root and a working directory of its own, which other threads do not follow."""
    _call("unshare", ctypes.c_int(_CLONE_FS))


def bind_mount(source: str, target: str, *, recursive: bool = False) -> None:
    """Show `source` at `target` as well."""
    _mount(source, target, _MS_BIND | (_MS_REC if recursive else 0))


def share_mount(target: str) -> None:
    """Let what is mounted below the mount point appear in other mount namespaces; EINVAL when it is none."""
    _mount("", target, _MS_SHARED | _MS_REC)


def unmount(target: str) -> None:
    """Take away the mount at `target`, now for the eye and for good when nobody uses it; EINVAL when it is none."""
    _call("umount2", os.fsencode(target), ctypes.c_int(_MNT_DETACH))


def _mount(source: str, target: str, flags: int) -> None:
    _call("mount", os.fsencode(source), os.fsencode(target), b"none", ctypes.c_ulong(flags), None)


def _call(name: str, *args: object) -> None:
    if getattr(_libc, name)(*args) != 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
