"""The daemon's socket as a file: made so that there is always one, and only for root."""

import logging
import os
import socket
import stat
import struct
from pathlib import Path
from typing import ClassVar

import anyio
import anyio.abc
import anyio.to_thread

from multus.errors import Fault, MultusError

logger = logging.getLogger(__name__)

_UCRED = struct.Struct("3i")  # pid, uid, gid: struct ucred, unix(7)
_MAX_PATH = 107  # bytes of sockaddr_un.sun_path, less its NUL


class ListenerError(MultusError):
    """The socket cannot be offered where it is wanted."""

    fault: ClassVar[Fault] = Fault.OPERATOR


async def listen(path: Path) -> anyio.abc.SocketListener:
    """A listening socket at `path`, mode 0600; a directory that is absent is made, mode 0700.

    It is bound under another name and renamed: a predecessor's socket, stale or alive, is replaced at one stroke,
    and nobody finds a socket there that does not listen yet.

    :raises ListenerError: when the path is too long, the directory is not root's alone, or the kernel refuses.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    if len(os.fsencode(temporary)) > _MAX_PATH:
        raise ListenerError(f"the socket's path is too long for the kernel: {path}", hint="choose a shorter socketDir")
    try:
        await anyio.to_thread.run_sync(_prepare_directory, path.parent)
        listener = await anyio.create_unix_listener(temporary, mode=0o600, backlog=1024)
        try:
            await anyio.Path(temporary).rename(path)
        except BaseException:
            await listener.aclose()
            temporary.unlink(missing_ok=True)
            raise
    except (OSError, ValueError) as error:  # a NUL in the path is a ValueError
        raise ListenerError(
            f"cannot make the socket {path}: {getattr(error, 'strerror', None) or error}",
            hint="multusd must run as root, and socketDir must be on a writable file system",
        ) from error
    return listener


def trusted(stream: anyio.abc.SocketStream) -> bool:
    """Whether the peer is root, or runs as the same user as this process. Says who it was when not.

    The file's mode keeps others out already; this holds when somebody has loosened it.
    """
    peer = stream.extra(anyio.abc.SocketAttribute.raw_socket)  # noqa: S610 (no SQL here)
    pid, uid, _ = _UCRED.unpack(peer.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    if uid in (0, os.geteuid()):
        return True
    logger.warning("process %d of user %d was refused: only root may use the socket", pid, uid)
    return False


def _prepare_directory(path: Path) -> None:
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    info = path.stat()
    if info.st_uid not in (0, os.geteuid()) or info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # Whoever can write here can put a socket of his own in our place. It may be /tmp by mistake: not changed.
        raise ListenerError(
            f"the socket's directory {path} can be written by others than root",
            hint="chown it to root and chmod it to 0700, or choose another socketDir",
        )
