"""SriovNetworkNodePolicy on a node, without an operator: policies are read, followed, and the hardware made to match.

Each change of policies, of the hardware and of who uses it leads to a new plan. What a plan refuses is said once, and
tried again as soon as that can help. While a PF is changed, none of its VFs is given out.
"""

import logging
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

import anyio
import anyio.abc
import anyio.to_thread
import msgspec

from devices import inventory
from devices.errors import DeviceError
from devices.inventory import PF, Inventory
from devices.manager import Manager
from devices.offers import Bell
from devices.policy import Plan, Policy, plan_policies
from devices.policy_apply import Applier, Failure
from devices.policy_pools import policy_pools
from devices.pool_config import PoolConfig
from dpdk.drivers import Binder
from dpdk.kernel import Kernel
from multus import uses
from multus.byhand import attached
from multus.errors import MultusError
from multus.journal import Journal
from multus.policy_drivers import BinderDrivers
from multus.policy_files import follow, for_node, labels, read_policies
from multus.settings import DaemonSettings

logger = logging.getLogger(__name__)

_FIRST: Final = 2.0  # seconds before what was refused or failed is planned for again, doubled each time, up to
_LONGEST: Final = 60.0


class _GivenUp(msgspec.Struct, frozen=True):
    """A PF that failed: why, under which circumstances, until when (for good when None), how long that pause is."""

    reason: str
    facts: tuple[object, ...]
    until: float | None
    pause: float


class Policies:
    """The policies of `settings` at work on what `manager` sees. Make and `load` it before the manager runs.

    `binder` is the node's one, where others bind VFs, too.
    """

    def __init__(
        self,
        manager: Manager,
        journal: Journal,
        settings: DaemonSettings,
        *,
        binder: Binder | None = None,
        kernel: Kernel | None = None,
        applier: Applier | None = None,
    ) -> None:
        self._manager = manager
        self._journal = journal
        self._settings = settings
        self._folder = Path(settings.policies) if settings.policies else None
        self._kernel = kernel or Kernel()
        drivers = BinderDrivers(binder or Binder(self._kernel, journal.records), self._kernel.sysfs)
        self._applier = applier or Applier(self._kernel.sysfs, drivers)
        self._policies: tuple[Policy, ...] = ()
        self._stale = Bell()  # files may say something else
        self._news = Bell()  # policies do
        self._complaint = ""
        self._said: frozenset[str] = frozenset()
        self._given_up: dict[str, _GivenUp] = {}
        self._waits = False  # for what was refused
        manager.more = self.pools

    @property
    def policies(self) -> tuple[Policy, ...]:
        """Those in force, of every node."""
        return self._policies

    def pools(self, found: Inventory) -> PoolConfig:
        """The pools that the policies make of this hardware."""
        return policy_pools(found, self._mine(found))

    async def load(self) -> bool:
        """Read the policies; whether they are others now. Those that cannot be used leave things as they are."""
        inline = self._settings.sriov_policies
        try:
            found = await anyio.to_thread.run_sync(read_policies, self._folder, inline)
        except MultusError as error:
            if str(error) != self._complaint:
                logger.error("policies stay as they are: %s", error)
            self._complaint = str(error)
            return False
        self._complaint = ""
        if found == self._policies:
            return False
        self._policies = found
        logger.info("%d SR-IOV policies: %s", len(found), ", ".join(policy.name for policy in found) or "none")
        return True

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Follow the policies, and make the hardware match, until cancelled."""
        async with anyio.create_task_group() as group:
            if self._folder is not None:
                await group.start(follow, self._folder, self._stale.ring)
            group.start_soon(self._follow)
            group.start_soon(self._work)
            task_status.started()

    async def _follow(self) -> None:
        seen = 0
        while True:
            await self._stale.wait(seen)
            seen = self._stale.rung
            if await self.load():
                await self._manager.repool()
                self._news.ring()

    async def _work(self) -> None:
        pause = _FIRST
        told: object = None
        while True:
            news, changes = self._news.rung, self._manager.changed.rung
            known, given = self._manager.inventory, self._manager.allocations
            try:
                plan, again = await self._converge()
            except (DeviceError, MultusError) as error:
                plan, again = None, 0.0
                self._tell([f"policies are not applied now: {error}"], [])
            pause = min(2 * pause, _LONGEST) if plan == told else _FIRST
            told = plan
            wait = None if again is None else max(again, pause)
            with anyio.move_on_after(wait):
                await self._changed(news, changes, known, given if self._waits else ())

    def _state(self) -> tuple[object, ...]:
        """What leads to another plan; who has which VF only while something waits for that."""
        return self._manager.inventory, self._manager.allocations if self._waits else ()

    async def _changed(self, news: int, changes: int, *before: object) -> None:
        """Return when policies, hardware or allocations are others than they were."""

        async def policies() -> None:
            await self._news.wait(news)
            group.cancel_scope.cancel()

        async def devices(seen: int) -> None:
            while all(now is was or now == was for now, was in zip(self._state(), before, strict=True)):
                await self._manager.changed.wait(seen)
                seen = self._manager.changed.rung
            group.cancel_scope.cancel()

        async with anyio.create_task_group() as group:
            group.start_soon(policies)
            group.start_soon(devices, changes)

    async def _converge(self) -> tuple[Plan, float | None]:
        """Plan, and carry it out; the last plan, and in how many seconds another makes sense without any news.

        :raises DeviceError: the hardware cannot be looked at.
        :raises MultusError: the journal cannot be read.
        """
        known = self._manager.inventory
        plan = plan_policies(known, self._mine(known))
        if plan.steps:
            plan = plan_policies(known, self._mine(known), await self._held())
        leave = self._left_alone()
        if _touched(plan) - leave:  # look closer, which costs more
            plan = await self._plan()
            if touched := _touched(plan) - leave:
                await self._carry_out(touched)
                plan = await self._plan()
        self._waits = bool(plan.refusals)
        failed = [each.reason for each in self._given_up.values()]
        self._tell([*(f"refused: {each}" for each in plan.refusals), *failed], plan.notes)
        pending = [each.until - anyio.current_time() for each in self._given_up.values() if each.until is not None]
        return plan, min([*pending, *([0.0] if self._waits else [])], default=None)

    async def _carry_out(self, touched: Collection[str]) -> None:
        """PF by PF, so that a slow one does not withhold the VFs of others."""
        problems: list[DeviceError | MultusError] = []

        async def work(pf: str) -> None:
            try:
                async with self._manager.withholding([pf], "policies change its PF"):
                    outcome = await self._applier.apply(await self._plan(), self._plan, only=pf)
            except (DeviceError, MultusError) as error:
                problems.append(error)
            else:
                self._note_failure(pf, next(iter(outcome.failures), None))

        async with anyio.create_task_group() as group:
            for pf in touched:
                group.start_soon(work, pf)
        if problems:
            raise problems[0]

    async def _plan(self) -> Plan:
        """Of the hardware as it is now, and with everybody who can be found to use it."""

        def look() -> tuple[Inventory, dict[str, str]]:
            survey = self._kernel.survey()
            found = inventory.build(self._kernel.sysfs.read(), guarded=survey.guarded)
            mine = self._mine(found)
            touched = _touched(plan_policies(found, mine))
            vfs = [vf for pf in found.pfs if pf.bdf in touched for vf in pf.vfs]
            sysfs = self._kernel.sysfs.root
            return found, uses.of_node(vfs, found.records, survey) | uses.of_hardware(vfs, sysfs=sysfs)

        found, used = await anyio.to_thread.run_sync(look)
        return plan_policies(found, self._mine(found), used | await self._held())

    async def _held(self) -> dict[str, str]:
        """Who uses devices, by what is recorded."""
        return await self._manager.in_use() | attached(await self._journal.all())

    def _mine(self, found: Inventory) -> tuple[Policy, ...]:
        return for_node(self._policies, labels(self._settings, found))

    def _facts(self, bdf: str) -> tuple[object, ...]:
        """While these stay, what failed for good is not tried again."""
        pf = self._manager.inventory.by_bdf.get(bdf)
        return (self._policies, (pf.driver, pf.total_vfs, pf.num_vfs) if isinstance(pf, PF) else None)

    def _left_alone(self) -> set[str]:
        now = anyio.current_time()
        found = set()
        for bdf, given_up in list(self._given_up.items()):
            if given_up.facts != self._facts(bdf):
                del self._given_up[bdf]
            elif given_up.until is None or given_up.until > now:
                found.add(bdf)
        return found

    def _note_failure(self, pf: str, failure: Failure | None) -> None:
        before = self._given_up.pop(pf, None)
        if failure is not None:
            pause = min(2 * before.pause, _LONGEST) if before is not None else _FIRST
            until = anyio.current_time() + pause if failure.retry else None
            self._given_up[pf] = _GivenUp(str(failure), self._facts(pf), until, pause)

    def _tell(self, problems: Iterable[str], notes: Iterable[str]) -> None:
        """Each once, for as long as it holds."""
        wrong, noted = set(problems), set(notes)
        for each in sorted(wrong - self._said):
            logger.warning("%s", each)
        for each in sorted(noted - self._said):
            logger.info("%s", each)
        self._said = frozenset(wrong | noted)


def _touched(plan: Plan) -> set[str]:
    return {step.pf for step in plan.steps}
