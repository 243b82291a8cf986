"""Carries out what policies plan: the numbers of VFs, their MTUs and drivers, PF by PF.

Nothing is remembered of a plan: after VFs were made or drivers changed, the hardware is looked at and planned for anew.
So a crash at any point needs no clean-up: the next plan begins where this one ended.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from typing import Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from devices import guard
from devices.errors import DeviceError, Fault
from devices.linux import netdevs, netns
from devices.linux.pci import USERSPACE
from devices.linux.sysfs import PciRecord
from devices.policy_steps import Change, Plan, Step

logger = logging.getLogger(__name__)

NUMVFS_SECONDS: Final = 180.0
"""For the kernel to make VFs: with hundreds of them, slow firmware takes minutes."""

_SETTLE: Final = 5.0  # seconds for the interfaces of VFs that were made to appear
_POLL: Final = 0.05


class Functions(Protocol):
    """PCI functions, as devices.linux.sysfs.Sysfs has them. Blocks; raises DeviceError."""

    def read_one(self, bdf: str) -> PciRecord | None: ...
    def set_numvfs(self, bdf: str, count: int) -> None: ...


class Links(Protocol):
    """Interfaces of this node. Blocks; raises DeviceError."""

    def set_mtu(self, ifindex: int, mtu: int) -> None: ...


class Drivers(Protocol):
    """Drivers of VFs; raises DeviceError."""

    async def bind(self, addresses: Sequence[str], driver: str, *, owner: str) -> Mapping[str, DeviceError]:
        """Give VFs of one PF to a driver, together; "" is whichever the kernel has for them. Those that failed."""

    async def removed(self, addresses: Collection[str]) -> None:
        """These VFs are no more: whatever is recorded about them is about nothing."""


class ApplyError(DeviceError):
    """A step that was not made, for a reason that is not the kernel's."""

    fault = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", retry: bool = True) -> None:
        super().__init__(message, hint=hint)
        self.retry = retry


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The step at which a PF was given up. `retry` when the same may work later."""

    step: Step
    reason: str
    retry: bool = False

    def __str__(self) -> str:
        by = f"policy {self.step.policy}: " if self.step.policy else ""
        return f"{by}{self.step.bdf or self.step.pf}: {self.reason}"


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a plan: steps that were made, the failure of each PF that had one, and the plan after all that."""

    done: tuple[Step, ...] = ()
    failures: tuple[Failure, ...] = ()
    plan: Plan = Plan()


class KernelLinks:
    """Those of the namespace this process is in: the node's."""

    def set_mtu(self, ifindex: int, mtu: int) -> None:
        """:raises DeviceError: the driver refused."""
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            netdevs.change(connection, ifindex, netdevs.Change(mtu=mtu))


class Applier:
    """Makes the steps of plans. `deadline` is what one change of a number of VFs may take, in seconds."""

    def __init__(
        self,
        functions: Functions,
        drivers: Drivers,
        links: Links | None = None,
        *,
        deadline: float = NUMVFS_SECONDS,
        settle: float = _SETTLE,
    ) -> None:
        self._functions = functions
        self._drivers = drivers
        self._links = links or KernelLinks()
        self._deadline = deadline
        self._settle = settle
        self._busy: set[str] = set()  # PFs for which a thread is still in the kernel

    async def apply(self, plan: Plan, replan: Callable[[], Awaitable[Plan]], *, only: str = "") -> Outcome:
        """Make the steps, those of several PFs at a time; a PF is given up at its first failure, the others are not.

        `replan` looks at the hardware as it is now, and plans again. With `only`, nothing is done to other PFs.
        :raises DeviceError: `replan` did; what was done until then is in the log.
        """
        done: list[Step] = []
        failures: dict[str, Failure] = {}
        while True:
            before = len(done)
            async with anyio.create_task_group() as group:
                for pf, steps in _by_pf(plan).items():
                    if pf not in failures and only in ("", pf):
                        group.start_soon(self._work, pf, steps, done, failures)
            if len(done) == before:
                return Outcome(done=tuple(done), failures=tuple(failures.values()), plan=plan)
            plan = await replan()

    async def _work(self, pf: str, steps: Sequence[Step], done: list[Step], failures: dict[str, Failure]) -> None:
        made: list[Step] = []
        for batch in _batches(steps):
            if batch[0].vf >= 0 and not batch[0].bdf:
                return  # it has an address in the next plan
            failed: tuple[Step, DeviceError] | None = None
            for step in batch:
                if failed is None and any(_same(step, each) for each in done if each not in made):
                    hint = "what else manages the NIC?"
                    failed = step, ApplyError("it was done, and then undone by somebody else", hint=hint)
            refused = {} if failed else await self._make(batch)
            for step in () if failed else batch:
                if error := refused.get(step.bdf):
                    failed = failed or (step, error)
                    continue
                made.append(step)
                done.append(step)
                by = f"policy {step.policy}: " if step.policy else ""
                now = step.value or "the kernel's"
                logger.info("%s%s: %s %s -> %s", by, step.bdf, step.change, step.before or "none", now)
            if failed is not None:
                step, error = failed
                reason = await self._back(made, error) if step.change is Change.NUMVFS else str(error)
                # What fails on a VF costs nothing when it is tried again; removing all VFs to make others does.
                retry = error.retry or step.change is not Change.NUMVFS
                failures[pf] = Failure(step=step, reason=reason, retry=retry)
                logger.debug("%s", failures[pf])
                return

    async def _make(self, batch: Sequence[Step]) -> Mapping[str, DeviceError]:
        """Make one step, or the same step on several VFs; which were not made."""
        step = batch[0]
        try:
            if step.change is Change.NUMVFS:
                await self._count(step.pf, step.number)
                return {}
            records = [await self._found(each) for each in batch]
            if step.change is Change.DRIVER:
                addresses = [each.bdf for each in batch]
                return await self._drivers.bind(addresses, step.value, owner=f"policy {step.policy}")
            netdev = records[0].netdev
            if netdev is None:
                raise ApplyError("it has no interface here, so its MTU cannot be set")
            await anyio.to_thread.run_sync(self._links.set_mtu, netdev.ifindex, step.number)
        except DeviceError as error:
            return {each.bdf: error for each in batch}
        return {}

    async def _found(self, step: Step) -> PciRecord:
        record = await self._read(step.bdf)
        if record is None:
            raise ApplyError("it is gone")
        if step.vf >= 0 and (record.physfn, record.vf_index) != (step.pf, step.vf):
            raise ApplyError(f"it is not VF {step.vf} of {step.pf} any more")
        return record

    async def _count(self, pf: str, count: int) -> None:
        """Have the kernel make or remove VFs. It cannot be called off: past the deadline the PF is left to it."""
        if pf in self._busy:
            raise ApplyError("the kernel still works on its VFs", hint="its log may say why that takes so long")
        before = await self._read(pf)

        self._busy.add(pf)

        def change() -> None:
            try:
                self._functions.set_numvfs(pf, count)
            finally:
                self._busy.discard(pf)

        with anyio.move_on_after(self._deadline) as patience:
            # With a limiter of its own it begins in any case, and does not stand in anybody's way for minutes.
            await anyio.to_thread.run_sync(change, abandon_on_cancel=True, limiter=anyio.CapacityLimiter(1))
        if patience.cancelled_caught:
            raise ApplyError(
                f"the kernel was told to make {count} VFs, and still works on it after {self._deadline:g} s",
                hint="its log may say why; the policies go on when it is done",
            )
        after = await self._read(pf)
        now = {bdf for _, bdf in after.virtfns} if after is not None else set()
        if before is not None and (gone := [bdf for _, bdf in before.virtfns if bdf not in now]):
            await self._drivers.removed(gone)
        if after is None or after.num_vfs != count:
            has = "is gone" if after is None else f"has {after.num_vfs} VFs"
            raise ApplyError(f"it {has} after it was told {count}", hint="does another program manage it?")
        await self._settled(sorted(now))

    async def _settled(self, addresses: Sequence[str]) -> None:
        """A VF whose driver has not made its interface yet looks like one in a pod."""
        with anyio.move_on_after(self._settle):
            waiting = list(addresses)
            while True:
                waiting = [bdf for bdf in waiting if not _ready(await self._read(bdf))]
                if not waiting:
                    break
                await anyio.sleep(_POLL)

    async def _back(self, made: Sequence[Step], error: DeviceError) -> str:
        """The kernel removed the VFs that were there but did not make others: those there were are made again.

        What to say of the failure.
        """
        first = made[0] if made else None
        if first is None or first.change is not Change.NUMVFS or first.pf in self._busy:
            return str(error)
        try:
            await self._count(first.pf, int(first.before))
        except DeviceError as second:
            return f"{error.message}; nor can its {first.before} VFs be made again: {second.message}"
        return f"{error.message}; its {first.before} VFs were made again" + (f" ({error.hint})" if error.hint else "")

    async def _read(self, bdf: str) -> PciRecord | None:
        return await anyio.to_thread.run_sync(self._functions.read_one, bdf)


def _by_pf(plan: Plan) -> dict[str, list[Step]]:
    found: dict[str, list[Step]] = {}
    for step in plan.steps:
        found.setdefault(step.pf, []).append(step)
    return found


def _batches(steps: Sequence[Step]) -> Iterator[list[Step]]:
    """Steps one by one, but VFs that change their driver together: they may share an IOMMU group."""
    batch: list[Step] = []
    for step in steps:
        if batch and (step.change is not Change.DRIVER or _kind(step) != _kind(batch[0])):
            yield batch
            batch = []
        batch.append(step)
    if batch:
        yield batch


def _kind(step: Step) -> tuple[object, ...]:
    return step.change, step.value, step.policy, bool(step.bdf)


def _same(step: Step, other: Step) -> bool:
    return (step.change, step.bdf, step.value) == (other.change, other.bdf, other.value)


def _ready(record: PciRecord | None) -> bool:
    """Whether nothing more is to be expected of a VF's driver."""
    return record is None or not record.driver or bool(record.netdevs or record.rdma) or record.driver in USERSPACE
