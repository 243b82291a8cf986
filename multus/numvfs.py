"""How many virtual functions a NIC has, set by hand: planned of the hardware as it is, and carried out."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec

from devices import guard, inventory, policy
from devices.errors import DeviceError
from devices.inventory import PF, Inventory
from devices.linux.pci import SYSFS
from devices.linux.sysfs import Sysfs
from devices.policy import Change, Plan, Policy, describe
from devices.policy_steps import title
from dpdk.kernel import Kernel
from multus import uses
from multus.byhand_asks import ByHandError, Made


def look(sysfs: Sysfs) -> Inventory:
    """The inventory with what the node needs. When that cannot be told, DeviceError: then nothing must be changed."""
    records = sysfs.read()
    return inventory.build(records, guarded=guard.devices(records, guard.read()))


def has_vfs(sysfs: Path, bdf: str) -> bool:
    """Whether there are any that somebody could use. Blocks."""
    record = Sysfs(sysfs).read_one(bdf)
    return record is not None and record.num_vfs > 0


def refuse_managed(found: Inventory, pf: PF, count: int, policies: Sequence[Policy]) -> None:
    """See that no policy of this node would make another number of VFs of it again.

    One that is externallyManaged leaves the number to people; one that cannot be carried out undoes nothing.

    :raises ByHandError: one would; the message names it.
    """
    if count == pf.num_vfs:
        return  # nothing will be changed, and so nothing undone
    then = msgspec.structs.replace(pf, num_vfs=count, vfs=())
    plan = policy.plan_policies(Inventory(pfs=(then,), by_bdf={pf.bdf: then}), policies)
    counts = [step for step in plan.steps if step.change is Change.NUMVFS]
    if counts:
        wanted = counts[-1]
        raise ByHandError(
            f"{title(pf)}: policy {wanted.policy} says that it has {wanted.value} VFs, and would undo this",
            hint=f"change numVfs of SriovNetworkNodePolicy {wanted.policy}; `multusctl vf plan` says what that does",
        )


def set_count(sysfs: Path, bdf: str, count: int, recorded: Mapping[str, str], *, dry: bool) -> Made:
    """Have a PF make `count` VFs. `recorded` says who has which, as far as is written anywhere. Blocks.

    :raises ByHandError: that is refused. :raises DeviceError: the kernel refused; the VFs are as they were.
    """
    edge = Sysfs(sysfs)
    found = look(edge)
    pf = found.by_bdf.get(bdf)
    if not isinstance(pf, PF):
        raise ByHandError(f"{bdf} is no PF", hint="`multusctl devices` shows all")
    held = uses.of_hardware(pf.vfs, sysfs=sysfs)
    if sysfs == SYSFS:  # of another, interfaces by these numbers are not ours
        held |= uses.of_node(pf.vfs, found.records, Kernel().survey())
    plan = policy.plan_numvfs(found, pf, count, held | dict(recorded))
    if plan.refusals:
        refusal = plan.refusals[0]
        raise ByHandError(f"{refusal.what}: {refusal.reason}", hint=refusal.hint)
    if dry or not plan.steps:
        return Made(lines=tuple(describe(plan, found)))
    _apply(edge, pf, plan)
    now = look(edge).by_bdf.get(bdf)
    vfs = now.vfs if isinstance(now, PF) else ()
    return Made(
        changed=True,
        lines=tuple(plan.notes),
        vfs=tuple(f"{vf.index}  {vf.bdf}  {vf.netdev or '-'}  {vf.driver or 'no driver'}" for vf in vfs),
    )


def _apply(sysfs: Sysfs, pf: PF, plan: Plan) -> None:
    """Make the steps. When the kernel removes the VFs but then refuses the new number, the old one is made again."""
    done = 0
    try:
        for step in plan.steps:
            sysfs.set_numvfs(step.bdf, step.number)
            done += 1
        record = sysfs.read_one(pf.bdf)
        if record is None or record.num_vfs != plan.steps[-1].number:
            raise ByHandError(
                f"{pf.netdev or pf.bdf} has {record.num_vfs if record else 'no'} VFs after it was told "
                f"{plan.steps[-1].number}",
                hint="does another program manage it? the kernel's log may say more",
            )
    except DeviceError as error:
        if not done:
            raise
        try:
            sysfs.set_numvfs(pf.bdf, pf.num_vfs)
        except DeviceError as second:
            raise ByHandError(
                f"{error.message}; nor can its {pf.num_vfs} VFs be made again: {second.message}"
            ) from error
        raise ByHandError(f"{error.message}; its {pf.num_vfs} VFs were made again", hint=error.hint) from error
