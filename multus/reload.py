"""The daemon's file while the daemon runs: read again on SIGHUP or when it changed, and applied where that is possible.

A file that cannot be used is told and passed over: what was in force stays in force.
"""

import logging
import signal
from collections.abc import Callable
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from multus.settings import DaemonSettings, SettingsError, changes, load_daemon

logger = logging.getLogger(__name__)

_SETTLE = 0.2  # seconds that a file is left to be written whole


class Reloader:
    """The settings in force. Reads them once at construction.

    :raises SettingsError: when the file cannot be used at the start.
    """

    def __init__(self, path: Path, *, node_name: str = "") -> None:
        self._path = path
        self._node_name = node_name
        self._told: list[Callable[[DaemonSettings, DaemonSettings], object]] = []
        self.current = self._load()

    def on_change(self, tell: Callable[[DaemonSettings, DaemonSettings], object]) -> None:
        """Call `tell` with the old and the new settings at each change."""
        self._told.append(tell)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the file and the signal until cancelled."""
        async with anyio.create_task_group() as group:
            await group.start(self._on_signal)
            await group.start(self._on_file)
            task_status.started()

    async def reload(self) -> None:
        """Read the file; apply it when it differs and can be used."""
        try:
            new = await anyio.to_thread.run_sync(self._load)
        except SettingsError as error:
            logger.error("the configuration is not reloaded: %s", error)
            return
        old = self.current
        found = changes(old, new)
        if found.restart:
            logger.warning("takes effect only with a restart of multusd: %s", ", ".join(found.restart))
        for warning in set(new.warnings) - set(old.warnings):
            logger.warning("%s", warning)
        if not found.live:
            return
        # Replaced as a whole: keys that need a restart are read at the start, and only there.
        self.current = new
        for tell in self._told:
            tell(old, new)
        logger.info("reloaded %s: %s", self._path, ", ".join(found.live))

    def _load(self) -> DaemonSettings:
        return load_daemon(self._path, node_name=self._node_name)

    async def _on_signal(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        with anyio.open_signal_receiver(signal.SIGHUP) as signals:
            task_status.started()
            async for _ in signals:
                await self.reload()

    async def _on_file(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """A ConfigMap is changed by renaming a link beside it, so the directory is watched, for anything at all."""
        from asyncinotify import Inotify, Mask

        seen = _identity(self._path)
        with Inotify() as inotify:
            mask = Mask.CLOSE_WRITE | Mask.MOVED_TO | Mask.CREATE | Mask.DELETE
            inotify.add_watch(self._path.parent, mask)
            task_status.started()
            async for _ in inotify:
                await anyio.sleep(_SETTLE)
                now = _identity(self._path)
                if now is not None and now != seen:
                    seen = now
                    await self.reload()


def _identity(path: Path) -> tuple[int, int, int] | None:
    try:
        info = path.stat()
    except OSError:
        return None
    return info.st_ino, info.st_size, info.st_mtime_ns
