"""The daemon's service that keeps the CNI configuration what it should be, as long as it runs.

It follows the node's default network, and puts the configuration back when somebody changes or removes it. When the
daemon stops, the configuration stays: without it pods would come up with only their primary network.
"""

import logging
import math
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.to_thread
import msgspec
from anyio.abc import TaskStatus

from multus.files import TEMP_MARK
from multus.install.errors import NotYetError
from multus.install.place import Kept, Wanted, keep
from multus.settings import DaemonSettings

if TYPE_CHECKING:
    from asyncinotify import Inotify

logger = logging.getLogger(__name__)

_SETTLE: Final = 0.05  # seconds: one change of a file comes as several events
_PEACE: Final = 60.0  # seconds without a meddler after which he is forgotten
_PAUSE_FIRST, _PAUSE_LAST = 0.1, 30.0  # seconds before the file is put back again, growing
_HINT: Final = "another program keeps the directory, too: Cilium does unless cni.exclusive is false"


class ConfKeeper:
    """Keeps the configuration in the settings' cniConfigDir.

    :param recheck: seconds after which everything is looked at without an event: what inotify cannot see, such as a
        file that another machine wrote. :param retry: seconds between looks as long as something is missing.
    """

    def __init__(self, settings: DaemonSettings, *, recheck: float = 30.0, retry: float = 1.0) -> None:
        self._settings = settings
        self._recheck = recheck
        self._retry = retry
        self._news = anyio.Event()
        self._last: Wanted | None = None
        self._directories: frozenset[Path] = frozenset()
        self._watching = anyio.CancelScope()
        self._told = ""
        self._meddled = 0
        self._meddled_at = -math.inf

    def update(self, settings: DaemonSettings) -> None:
        """Take over what may change while the daemon runs: the keys that a CNI configuration holds."""
        live = ("overlay", "type", "cni_version", "cluster_network", "delegates", "capabilities")
        fresh = {name: getattr(settings, name) for name in (*live, "readiness_indicator_file")}
        self._settings = msgspec.structs.replace(self._settings, **fresh)
        self._news.set()

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled. Started once the first look is done, whatever it came to."""
        async with anyio.create_task_group() as group:
            pause = await self._look()
            group.start_soon(self._watch)
            task_status.started()
            while True:
                with anyio.move_on_after(pause):
                    await self._news.wait()
                    await anyio.sleep(_SETTLE)
                pause = await self._look()

    async def _look(self) -> float:
        """Make it right; how many seconds to wait for news before the next look."""
        self._news = anyio.Event()
        # Shielded: what the thread has begun it ends, and what it did should be known.
        with anyio.CancelScope(shield=True):
            kept = await anyio.to_thread.run_sync(keep, self._settings, self._last)
        self._tell(kept)
        if kept.directories != self._directories:
            self._directories = kept.directories
            self._watching.cancel()
        if kept.done and kept.wanted == self._last:
            await self._put_up_with(kept)
        self._last = kept.wanted
        return self._recheck if kept.problem is None else self._retry

    def _tell(self, kept: Kept) -> None:
        """Say what was done, and a problem once for as long as it lasts."""
        for line in kept.done:
            logger.info("%s", line)
        problem = str(kept.problem or "")
        if problem and problem != self._told:
            stands = f"{kept.wanted.path} stays as it is" if kept.wanted else "no CNI configuration is written yet"
            level = logging.WARNING if isinstance(kept.problem, NotYetError) else logging.ERROR
            logger.log(level, "%s: %s", stands, problem)
        elif self._told and not problem:
            logger.info("the CNI configuration is in order again")
        self._told = problem

    async def _put_up_with(self, kept: Kept) -> None:
        """Nothing had changed on our side, so somebody else touched the file: do not fight him at full speed."""
        assert kept.wanted is not None
        now = anyio.current_time()
        self._meddled = self._meddled + 1 if now - self._meddled_at < _PEACE else 1
        if self._meddled.bit_count() == 1:  # the 1st, 2nd, 4th, 8th time
            hint = f" ({_HINT})" if self._meddled > 1 else ""
            logger.warning(
                "%s was changed or removed by somebody and is put back, time %d%s",
                kept.wanted.path,
                self._meddled,
                hint,
            )
        if self._meddled > 1:
            await anyio.sleep(min(_PAUSE_FIRST * 2 ** min(self._meddled, 16), _PAUSE_LAST))
        self._meddled_at = anyio.current_time()

    async def _watch(self) -> None:
        """Turn whatever happens in the directories into news; one that is replaced or comes later is found again."""
        from asyncinotify import Inotify

        seen: frozenset[Path] = frozenset()
        while True:
            directories = self._directories
            try:
                with Inotify() as inotify:
                    found = _add_watches(inotify, directories)
                    if found != seen:
                        self._news.set()  # something may have happened before it was watched
                    seen = found
                    with anyio.move_on_after(math.inf if found == directories else self._retry) as self._watching:
                        await self._listen(inotify)
                        seen = frozenset()
            except OSError as error:
                logger.warning("no changes are noticed for %g s: inotify: %s", self._recheck, error.strerror)
                await anyio.sleep(self._recheck)
            await anyio.sleep(_SETTLE)

    async def _listen(self, inotify: "Inotify") -> None:
        """Returns when the watches have to be set up anew."""
        from asyncinotify import Mask

        ends = Mask.IGNORED | Mask.UNMOUNT | Mask.MOVE_SELF | Mask.DELETE_SELF
        while True:
            event = await inotify.get()
            if event.mask & ends:
                return
            if event.name is None or TEMP_MARK not in event.name.name:
                self._news.set()


def _add_watches(inotify: "Inotify", directories: frozenset[Path]) -> frozenset[Path]:
    """Watch those directories that are there; which ones they are."""
    from asyncinotify import Mask

    changes = Mask.CLOSE_WRITE | Mask.MOVE | Mask.CREATE | Mask.DELETE | Mask.ATTRIB
    found = set()
    for directory in directories:
        try:
            inotify.add_watch(directory, changes | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.ONLYDIR)
        except (FileNotFoundError, NotADirectoryError):
            continue
        found.add(directory)
    return frozenset(found)
