"""Which device-info documents there may be, so that those that are stale go when they become it.

The folder is listed when this program starts, and when something of it may have to go. In between, what was given out
is remembered: a change of pools that concerns no document costs no look at the disk, some 0.3 ms.
"""

import logging
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

import anyio.to_thread

from devices.infofiles import FOLDER, InfoError, remove_stale
from devices.kubelet.allocate import info_name
from devices.pools import Pools

logger = logging.getLogger(__name__)


class Documents:
    """Those below `info`. `resources` are all that there ever were, also those that are no pools any more."""

    def __init__(self, info: Path) -> None:
        self.resources: set[str] = set()
        self._info = info
        self._names: set[str] = set()  # of those that may be there
        self._listed = False

    def expect(self, resource: str, devices: Iterable[str]) -> None:
        """These are about to be given out."""
        self._names.update(info_name(resource, bdf) for bdf in devices)

    def doubt(self) -> None:
        """There may be some that were not expected: giving out failed halfway."""
        self._listed = False

    async def tidy(self, pools: Pools, used: Callable[[], Collection[str]], moved: Iterable[str] | None = None) -> None:
        """Remove what is said of devices that are not in that pool any more, and that nobody uses.

        With `moved`, all others are where they were when this was last done.
        """
        if self._listed and moved is not None and not self._may_have(moved):
            return
        try:
            self._names |= await anyio.to_thread.run_sync(self._remove, frozenset(self.resources), pools, used())
            self._listed = True
        except InfoError as error:
            logger.warning("%s", error)

    def _may_have(self, devices: Iterable[str]) -> bool:
        return any(info_name(resource, bdf) in self._names for bdf in devices for resource in self.resources)

    def _remove(self, resources: Collection[str], pools: Pools, used: Collection[str]) -> set[str]:
        """Blocks; the names of those that stay."""
        members = {bdf: member.resource for bdf, member in pools.by_bdf.items()}
        remove_stale(self._info, resources, members, used)
        folder = self._info / FOLDER
        return {path.name for path in folder.iterdir()} if folder.is_dir() else set()
