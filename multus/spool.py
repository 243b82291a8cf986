"""DELs that the shim stored while no daemon was there: carried out when one is, none forgotten.

The runtime was told that they are done, so a file goes only after its DEL succeeded. See `multus.stored` for the files.
"""

import logging
import os
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import anyio.abc
import anyio.to_thread

from multus.errors import MultusError
from multus.files import remove, sync_directory
from multus.stored import SpoolEntry, SpoolError, read_entries, sweep

__all__ = ["Spool", "SpoolEntry", "SpoolError"]

logger = logging.getLogger(__name__)

Handle = Callable[[dict[str, str], bytes], Awaitable[None]]


class Spool:
    """The stored DELs in `directory`. Methods that are not async block; those of one spool may run in any thread.

    :param recheck: seconds after which the directory is looked at without an event. :param retry: seconds before the
        first and, growing, before later tries of a DEL that failed.
    """

    def __init__(self, directory: Path, *, recheck: float = 60.0, retry: tuple[float, float] = (1.0, 300.0)) -> None:
        self._directory = directory
        self._recheck = recheck
        self._retry = retry
        self._news = anyio.Event()
        self._queues: dict[str, list[SpoolEntry]] = {}  # by container, while a task works on it

    def prepare(self) -> None:
        """Make the directory, mode 0700: where it is, shims store DELs, for they count on a daemon.

        :raises SpoolError: it cannot be made, or others than root can write in it.
        """
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            try:
                owner = os.fstat(descriptor).st_uid
                if owner not in (0, os.geteuid()):
                    raise SpoolError(
                        f"{self._directory} belongs to user {owner}, not to root",
                        hint="whoever owns it could have pods' networks deleted: look at it, then remove it",
                    )
                os.fchmod(descriptor, 0o700)
            finally:
                os.close(descriptor)
            sync_directory(self._directory.parent)
            sweep(self._directory)
        except OSError as error:
            raise SpoolError(
                f"cannot keep stored DELs in {self._directory}: {error.strerror or error}",
                hint="cniDir must be a directory that root can write",
            ) from None

    def pending(self) -> list[SpoolEntry]:
        """What is stored, oldest first.

        :raises SpoolError: the directory cannot be read.
        """
        return read_entries(self._directory)

    def done(self, entry: SpoolEntry) -> None:
        """Remove an entry durably; it may be gone already.

        :raises FileError: it could not be removed.
        """
        remove(self._directory / entry.name)

    def clear_container(self, container_id: str, ifname: str = "") -> int:
        """Remove what is stored for a container (for one interface name of it): the runtime's own DEL was carried out.

        How many DELs that were.

        :raises FileError: one could not be removed. :raises SpoolError: the directory cannot be read.
        """
        found = [
            entry for entry in self.pending() if entry.container_id == container_id and ifname in ("", entry.ifname)
        ]
        for entry in found:
            self.done(entry)
        return len(found)

    async def run(self, handle: Handle, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Carry out what is stored and what comes, until cancelled; started when what was there has been begun.

        Containers are worked on beside each other, DELs of one container after each other, oldest first.
        """
        async with anyio.create_task_group() as group:
            group.start_soon(self._watch)
            started = False
            while True:
                self._news = anyio.Event()
                await self._look(group, handle)
                if not started:
                    task_status.started()
                    started = True
                with anyio.move_on_after(self._recheck):
                    await self._news.wait()

    async def _look(self, group: anyio.abc.TaskGroup, handle: Handle) -> None:
        known = {entry.name for queue in self._queues.values() for entry in queue}
        try:
            fresh = await anyio.to_thread.run_sync(lambda: read_entries(self._directory, without=known))
        except SpoolError as error:
            logger.error("%s", error)
            return
        for entry in fresh:
            queue = self._queues.setdefault(entry.container_id, [])
            queue.append(entry)
            if len(queue) == 1:
                group.start_soon(self._work, entry.container_id, queue, handle)

    async def _work(self, container_id: str, queue: list[SpoolEntry], handle: Handle) -> None:
        """Everything that is stored for a container; ends when nothing is left."""
        failures, pause = 0, self._retry[0]
        while queue:
            try:
                # It may have been cleared during a pause.
                if not failures or await anyio.Path(self._directory / queue[0].name).exists():
                    await self._carry_out(queue[0], handle)
            except Exception as error:
                failures += 1
                self._complain(queue[0], error, failures)
                await anyio.sleep(pause)
                pause = min(pause * 2, self._retry[1])
            else:
                del queue[0]
                failures, pause = 0, self._retry[0]
        del self._queues[container_id]

    async def _carry_out(self, entry: SpoolEntry, handle: Handle) -> None:
        await handle(dict(entry.env), entry.conf)
        await anyio.to_thread.run_sync(self.done, entry)
        logger.info("stored DEL of container %s, %s, is carried out", entry.container_id, entry.ifname)

    def _complain(self, entry: SpoolEntry, error: Exception, failures: int) -> None:
        if failures.bit_count() > 1:  # told at the 1st, 2nd, 4th, 8th time
            return
        text = "stored DEL of container %s, %s, failed (time %d), is tried again: %s"
        defect = None if isinstance(error, MultusError) else error
        logger.warning(text, entry.container_id, entry.ifname, failures, error, exc_info=defect)

    async def _watch(self) -> None:
        """Turn what happens in the directory into news; one that was removed is made anew."""
        from asyncinotify import Inotify, Mask

        changes = Mask.MOVED_TO | Mask.CLOSE_WRITE | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR
        ends = Mask.IGNORED | Mask.UNMOUNT | Mask.DELETE_SELF | Mask.MOVE_SELF
        while True:
            try:
                with Inotify() as inotify:
                    inotify.add_watch(self._directory, changes)
                    self._news.set()  # something may have come before it was watched
                    while not (await inotify.get()).mask & ends:
                        self._news.set()
                logger.warning("%s was removed or replaced: it is made anew", self._directory)
                await anyio.to_thread.run_sync(self.prepare)
            except (OSError, SpoolError) as error:
                logger.warning("stored DELs are noticed within %g s only: %s", self._recheck, error)
                await anyio.sleep(self._recheck)
