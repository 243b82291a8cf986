"""The device plugin's configuration on disk, read and followed."""

import logging
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final

import anyio
import anyio.abc

from devices.config import ConfigError
from devices.pool_config import PoolConfig, parse_config

logger = logging.getLogger(__name__)

_LIMIT: Final = 4 << 20  # bytes
_SETTLE: Final = 0.2  # seconds that a file is left to be written whole


def read_config(path: Path) -> PoolConfig:
    """The pools in the file. Blocks.

    :raises ConfigError: it cannot be read or used.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_LIMIT + 1)
    except OSError as error:
        raise ConfigError(
            f"cannot read {path}: {error.strerror or error}", hint='it has {"resourceList": [...]}, as upstream'
        ) from None
    if len(data) > _LIMIT:
        raise ConfigError(f"{path} is larger than {_LIMIT} bytes")
    return parse_config(data, where=str(path))


async def follow(
    path: Path,
    reload: Callable[[], Awaitable[object]],
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    """Reload when the file may have changed.

    A ConfigMap is changed by renaming a link beside it, so the directory is watched, for anything at all.
    """
    from asyncinotify import Inotify, Mask

    with Inotify() as inotify:
        try:
            inotify.add_watch(path.parent, Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE | Mask.DELETE)
        except OSError as error:
            logger.warning("%s is not followed: %s", path, error.strerror or error)
            task_status.started()
            return
        seen = _look(path)
        task_status.started()
        async for _ in inotify:
            await anyio.sleep(_SETTLE)
            now = _look(path)
            if now is not None and now != seen:
                seen = now
                await reload()


def _look(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
