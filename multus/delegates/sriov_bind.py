"""A VF that an attachment wants on another driver: `"driver"` in the configuration of `sriov`, carried out and undone.

Two records know the way back: the delegate's of the VF's settings, which is written first and removed last, and the
binder's of its driver and MACs. So the binder has none of an attachment that the delegate does not know, and a crash
between any two steps leaves a VF that a DEL puts right.
"""

import msgspec

from devices.linux.pci import USERSPACE
from devices.vf import VFError, locate, plan_vf, read_state
from dpdk.drivers import Binder, BindPlan
from dpdk.errors import RefusedError
from multus.delegates.plugin import Call
from multus.delegates.sriov_conf import SriovConf
from multus.delegates.sriov_record import Record
from multus.delegates.sriov_vf import PodKernel, Prepared


def owner(container_id: str, ifname: str) -> str:
    """Whom the binder knows an attachment by."""
    return f"{ifname} of container {container_id}"


async def plan_driver(binder: Binder, conf: SriovConf, call: Call) -> BindPlan | None:
    """How the VF gets to the driver that is asked for; None when it is there, or none is asked for.

    Its MAC is set while the kernel's driver has it: later, a program would find another one.

    :raises RefusedError: it may not go there, or the kernel cannot do it.
    :raises DeviceError: the kernel did not tell.
    """
    if not conf.driver:
        return None
    plan = await binder.plan(
        conf.device, conf.driver, mac=conf.vf.mac or "", owner=owner(call.container_id, call.ifname)
    )
    if plan.refusals:
        raise RefusedError(plan.bdf, plan.target, plan.refusals)
    return plan if plan.record is not None else None


def rebased(kernel: PodKernel, prepared: Prepared) -> Prepared:
    """The attachment, once its VF is bound: what is left to be set, as the binder has set the MAC.

    :raises DeviceError: it cannot be looked at, or is on another driver again.
    """
    record = prepared.record
    place = locate(kernel, record.bdf)
    if place.driver != record.driver:
        raise VFError(
            f"VF {record.bdf} is on {place.driver or 'no driver'}, {record.driver} was to have it",
            hint="somebody else binds it; `multusctl dpdk status` shows what there is",
            retry=True,
        )
    state = read_state(kernel, place)
    if state is None:  # `prepare` has refused whatever needs the PF
        return msgspec.structs.replace(prepared, place=place)
    return msgspec.structs.replace(prepared, place=place, state=state, steps=plan_vf(state, record.wanted))


async def give_back(binder: Binder, record: Record) -> None:
    """Put the driver back, once no program holds the VF; nothing when that was done, or it was never changed.

    :raises HeldError: a program still has it: nothing was changed.
    :raises DeviceError: a step failed; it can be repeated.
    """
    if record.bound:
        await binder.restore(record.bdf, owner=owner(record.container_id, record.ifname))


def for_programs(record: Record) -> bool:
    """Whether a program drives the VF of a record, beside the kernel or in place of it."""
    return record.driver in USERSPACE or record.beside
