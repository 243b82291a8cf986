"""The node's devices at work: hardware -> inventory -> pools -> kubelet, each following the one before it live.

Without a kubelet it gives devices out itself, and remembers to whom.
"""

import logging
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import anyio
import anyio.abc
import anyio.to_thread

from devices import guard, pools
from devices.config import ConfigError
from devices.documents import Documents
from devices.errors import DeviceError
from devices.giving import Giver, Held
from devices.inventory import Inventory
from devices.ledger import Ledger, Memory, Store
from devices.linux.sysfs import Sysfs
from devices.linux.uevents import RESCAN, Change, Uevents
from devices.offering import Offering
from devices.offers import Bell
from devices.policy_pools import joined
from devices.pool_config import PoolConfig
from devices.pool_file import follow, read_config
from devices.pooled import Pooled
from devices.pools import Pools
from devices.scout import Scout
from devices.statistics import Statistics

if TYPE_CHECKING:
    from devices.kubelet.registration import Kubelet

logger = logging.getLogger(__name__)

_BURST: Final = 0.02  # seconds that events are gathered: 512 VFs that appear at once are one look, not 512
_AGAIN: Final = 1.0  # seconds before a look that failed is tried again

Events = Callable[[], AbstractAsyncContextManager[AsyncIterator[Change]]]


class Manager(Pooled):
    """`config` is upstream's config.json, None for none; `kubelet` None on a node without one; `info` the directory of
    device-info.

    `held` tells which devices pods use; they keep their pools. `reasons` tells why the node needs an interface.
    `changed` rings after each change of inventory, pools or allocations. `more` makes further pools of the hardware.
    `gathering` is for how long events are waited for after the first, in seconds.
    """

    def __init__(
        self,
        *,
        config: Path | None,
        info: Path,
        sysfs: Sysfs | None = None,
        kubelet: "Kubelet | None" = None,
        store: Store | None = None,
        held: Held | None = None,
        reasons: Callable[[], Mapping[str, str]] = guard.read,
        events: Events | None = None,
        clock: Callable[[], float] = time.time,
        gathering: float = _BURST,
    ) -> None:
        sysfs = sysfs or Sysfs()
        super().__init__(Giver(sysfs=sysfs, info=info, ledger=Ledger(store or Memory()), held=held, clock=clock))
        self.changed = Bell()
        self.more: Callable[[Inventory], PoolConfig] | None = None
        self._file = PoolConfig()
        self._path = config
        self._kubelet = kubelet
        self._scout = Scout(sysfs, reasons)
        self._open_events = events or (lambda: Uevents(sysfs.root))
        self._documents = Documents(info)
        self._offering = Offering(self._giver, kubelet, given=self._documents.expect)
        self._gathering = gathering
        self._refreshing = anyio.Lock()
        self._assigned = False
        self._pending: set[Change] = set()
        self._news = Bell()
        self._said: frozenset[str] = frozenset()
        self._events = self._refreshes = self._reloads = self._refused = 0

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow hardware and configuration until cancelled; started when the pools are there.

        :raises DeviceError: what was given out before cannot be read.
        """
        await self._giver.ledger.load()
        async with self._open_events() as events, anyio.create_task_group() as group:
            if self._kubelet is not None:
                await group.start(self._kubelet.run)
            await self.reload()
            await self._refresh({RESCAN})
            if self._path is not None:
                await group.start(follow, self._path, self.reload)
            group.start_soon(self._listen, events)
            group.start_soon(self._work)
            task_status.started()

    async def reload(self) -> bool:
        """Read the configuration anew and apply it; a file that cannot be used leaves things as they are."""
        if self._path is None:
            return False
        try:
            config = await anyio.to_thread.run_sync(read_config, self._path)
        except ConfigError as error:
            self._refused += 1
            logger.error("pools stay as they are: %s", error)
            return False
        if config == self._file:
            return False
        self._reloads += 1
        self._file = config
        logger.info("%s: %d pools", self._path, len(config.pools))
        await self.repool()
        return True

    async def repool(self) -> None:
        """Make the pools anew: the file, or what `more` says, is different."""
        if self._assigned:  # else the first look is still to come
            async with self._refreshing:
                await self._assign()

    async def in_use(self) -> dict[str, str]:
        """Devices that anybody has, as far as is recorded, and who."""
        held = {
            bdf: f"a pod ({resource})" if resource else "a pod"
            for bdf, resource in (await self._giver.in_use()).items()
        }
        return held | dict(self._giver.ledger.holders)

    @asynccontextmanager
    async def withholding(self, parents: Collection[str], reason: str) -> AsyncIterator[None]:
        """Nothing of these PFs is given out within the block. When it ends, what became of them has been looked at."""
        await self._giver.withhold(parents, reason)
        self._offering.withhold(parents, reason)
        self.changed.ring()
        try:
            yield
        finally:
            with anyio.CancelScope(shield=True):
                try:
                    await self._refresh({RESCAN})
                except DeviceError as error:
                    logger.error("a change of devices is not taken over yet: %s", error)
                await self._giver.withhold(parents, "")
                self._offering.withhold(parents, "")
                self.changed.ring()

    async def release(self, owner: str) -> tuple[str, ...]:
        """As `Giver.release`."""
        devices = await self._giver.release(owner)
        if devices:
            await self._tidy()
            self._publish()
        return devices

    async def drop(self, device: str) -> str:
        """As `Giver.drop`."""
        owner = await super().drop(device)
        if owner:
            await self._tidy()
            self._publish()
        return owner

    def statistics(self) -> Statistics:
        """What there is and what was done."""
        return Statistics(
            pools=self._offering.statistics(),
            physical_functions=len(self.inventory.pfs),
            virtual_functions=len(self.inventory.vfs),
            events=self._events,
            refreshes=self._refreshes,
            reloads=self._reloads,
            refused_configs=self._refused,
        )

    async def _listen(self, events: AsyncIterator[Change]) -> None:
        async for change in events:
            self._events += 1
            self._pending.add(change)
            self._news.ring()

    async def _work(self) -> None:
        while True:
            seen = self._news.rung
            if not self._pending:
                await self._news.wait(seen)
            await anyio.sleep(self._gathering)
            changes, self._pending = self._pending, set()
            try:
                await self._refresh(changes)
            except DeviceError as error:
                logger.error("a change of devices is not taken over yet: %s", error)
                self._pending |= changes
                await anyio.sleep(_AGAIN)

    async def _refresh(self, changes: Collection[Change]) -> None:
        """Look again at what changed, and take it from there."""
        async with self._refreshing:
            self._refreshes += 1
            now = await self._scout.look(self.inventory, changes)
            if now is not self.inventory or not self._assigned:
                self._giver.inventory = now
                await self._assign()

    async def _assign(self) -> None:
        """From the inventory to pools and offers; whoever calls holds `_refreshing`."""
        held, before = await self._giver.in_use(), self.pools
        config = self._file if self.more is None else joined(self._file, self.more(self.inventory))
        if config == self._giver.config:  # the same object lets `reassign` ask only about what changed
            config = self._giver.config
        after, moved = pools.reassign(before, self.inventory, config, held=held)
        self._giver.config, self._giver.pools = config, after
        self._warn((*config.warnings, *after.overlaps))
        await self._offering.follow(moved)
        self._documents.resources |= {pool.resource for pool in config.pools}
        if not self._assigned:
            await self._tidy()
        elif elsewhere := _elsewhere(before, after, moved):
            await self._tidy(elsewhere)
        self._assigned = True
        self.changed.ring()

    async def _tidy(self, moved: Collection[str] | None = None) -> None:
        await self._documents.tidy(self.pools, lambda: self._giver.used, moved)

    def _gave(self, resource: str, devices: Sequence[str] | None) -> None:
        if devices is None:
            self._documents.doubt()
        else:
            self._documents.expect(resource, devices)
            self._publish()

    def _publish(self) -> None:
        """Offer the devices as they are given out now."""
        self._offering.publish_holders()
        self.changed.ring()

    def _warn(self, said: Iterable[str]) -> None:
        """Each complaint once, for as long as it holds."""
        now = frozenset(said)
        for each in sorted(now - self._said):
            logger.warning("%s", each)
        self._said = now


def _elsewhere(before: Pools, after: Pools, moved: Iterable[str]) -> set[str]:
    """Those of them that are in another pool now or in none, and what is not in use any more."""
    pairs = ((bdf, before.by_bdf.get(bdf), after.by_bdf.get(bdf)) for bdf in moved)
    found = {bdf for bdf, was, now in pairs if was and (now is None or now.resource != was.resource)}
    return found | (before.held.keys() - after.held.keys()) if before.held is not after.held else found
