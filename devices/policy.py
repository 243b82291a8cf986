"""What policies change on this node: VFs, MTUs and drivers, in order, or why not. Pure.

Nothing is planned for a NIC that the node itself needs, nor for a VF that is in use. A PF's number of VFs can only be
changed by removing all of them first (the kernel answers EBUSY else), so that is refused while any of them is in use.
PFs and VFs of no policy are left alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Final

from devices.config import nearest
from devices.inventory import PF, VF, Inventory
from devices.linux.pci import USERSPACE
from devices.policy_config import MELLANOX, MELLANOX_MOST, VFIO, Policy, parse_policies, parse_policy
from devices.policy_steps import Change, Plan, Refusal, Step, describe, title

__all__ = [
    "Change",
    "Plan",
    "Policy",
    "Refusal",
    "Step",
    "describe",
    "parse_policies",
    "parse_policy",
    "plan_numvfs",
    "plan_policies",
]

_SHOWN: Final = 4


class _Draft:
    """A plan while it is made."""

    def __init__(self, inventory: Inventory, held: Mapping[str, str]) -> None:
        self.inventory = inventory
        self.held = held
        self.steps: list[Step] = []
        self.refusals: list[Refusal] = []
        self.notes: list[str] = []

    def refuse(self, what: str, reason: str, hint: str = "", policy: str = "") -> None:
        self.refusals.append(Refusal(what=what, reason=reason, hint=hint, policy=policy))

    def done(self) -> Plan:
        return Plan(steps=tuple(self.steps), refusals=tuple(self.refusals), notes=tuple(self.notes))


def plan_policies(inventory: Inventory, policies: Sequence[Policy], held: Collection[str] = ()) -> Plan:
    """What has to be done for the node to be as the policies want it; nothing when it is.

    `held` are the addresses of VFs in use; as a mapping it says by whom.
    """
    draft = _Draft(inventory, _holders(held))
    ordered = by_priority(policies)
    for policy in ordered:
        _say_unmatched(draft, policy)
    for pf in inventory.pfs:
        chosen = [policy for policy in ordered if selects(policy, pf)]
        if chosen:
            _plan_pf(draft, pf, chosen)
    return draft.done()


def plan_numvfs(inventory: Inventory, pf: PF, count: int, held: Collection[str] = ()) -> Plan:
    """What has to be done for one PF to have `count` VFs, as a person asks for it. `held` as in plan_policies."""
    draft = _Draft(inventory, _holders(held))
    if _plan_count(draft, pf, count, "") and len(draft.steps) > 1:
        draft.notes.append(f"the {pf.num_vfs} VFs that are there go first: a PF takes another number only then")
    return draft.done()


def by_priority(policies: Iterable[Policy]) -> list[Policy]:
    """The one that counts most first; of equals, the name decides, so that the same files give the same plan."""
    return sorted(policies, key=lambda policy: (policy.priority, policy.name))


def _holders(held: Collection[str]) -> Mapping[str, str]:
    return held if isinstance(held, Mapping) else dict.fromkeys(held, "")


def selects(policy: Policy, pf: PF) -> bool:
    """Whether the policy is for any VF of that PF."""
    nics = policy.nics
    return (
        pf.total_vfs > 0
        and nics.vendor in ("", pf.vendor)
        and nics.device in ("", pf.device)
        and (not nics.root_devices or pf.bdf in nics.root_devices)
        and (not nics.pf_names or bool(nics.ranges(pf.netdev)))
    )


def _say_unmatched(draft: _Draft, policy: Policy) -> None:
    """A policy that is for no NIC here is either for other nodes, or misspelled."""
    if any(selects(policy, pf) for pf in draft.inventory.pfs):
        return
    wanted = [*(each.name for each in policy.nics.pf_names), *policy.nics.root_devices]
    here = {pf.netdev or pf.bdf: pf for pf in draft.inventory.pfs} | {pf.bdf: pf for pf in draft.inventory.pfs}
    plain = [name for name in wanted if (pf := here.get(name)) is not None and not pf.total_vfs]
    if plain:
        reason = f"{plain[0]} has no SR-IOV"
        draft.refuse(f"policy {policy.name}", reason, "its driver or the BIOS may have it switched off", policy.name)
        return
    near = next((found for name in wanted if name not in here and (found := nearest(name, here))), "")
    draft.notes.append(f"policy {policy.name} selects no NIC here" + (f': did you mean "{near}"?' if near else ""))


def _plan_pf(draft: _Draft, pf: PF, policies: Sequence[Policy]) -> None:
    first = policies[0]
    equals = [policy for policy in policies if policy.priority == first.priority]
    count = max(policy.num_vfs for policy in equals)
    leader = next(policy for policy in equals if policy.num_vfs == count)
    for other in policies:
        if other.num_vfs != count and not other.externally_managed:
            draft.notes.append(
                f"{title(pf)} gets {count} VFs as policy {leader.name} says; policy {other.name} says {other.num_vfs}"
            )
    if first.link_type and pf.link_type and first.link_type != pf.link_type:
        draft.refuse(title(pf), f"its links are {pf.link_type}, not {first.link_type}", "firmware sets it", first.name)
        return
    if any(policy.externally_managed for policy in policies):
        if not _external(draft, pf, policies):
            return
    elif not _plan_count(draft, pf, count, leader.name):
        return
    else:
        _plan_mtu(draft, pf, max(policy.mtu for policy in equals), first.name)
    _plan_vfs(draft, pf, policies)


def _external(draft: _Draft, pf: PF, policies: Sequence[Policy]) -> bool:
    """Somebody else makes the VFs: are there enough of them, and do they fit?"""
    fits = True
    for policy in policies:
        if policy.num_vfs > pf.num_vfs:
            reason = f"it has {pf.num_vfs} VFs and policy {policy.name} needs {policy.num_vfs}"
            draft.refuse(title(pf), reason, "externallyManaged: who manages it has to make them", policy.name)
            fits = False
        elif policy.mtu > pf.mtu > 0:
            reason = f"its MTU is {pf.mtu} and policy {policy.name} needs {policy.mtu}"
            draft.refuse(title(pf), reason, "externallyManaged: who manages it has to set it", policy.name)
            fits = False
    return fits


def _plan_count(draft: _Draft, pf: PF, count: int, policy: str) -> bool:
    """Steps to that number of VFs; False when it is refused."""
    if count == pf.num_vfs:
        return True
    problem, hint = _count_problem(draft, pf, count)
    if problem:
        draft.refuse(title(pf), problem, hint, policy)
        return False
    before = pf.num_vfs
    for number in (0, count) if before and count else (count,):
        step = Step(change=Change.NUMVFS, pf=pf.bdf, bdf=pf.bdf, before=str(before), value=str(number), policy=policy)
        draft.steps.append(step)
        before = number
    return True


def _count_problem(draft: _Draft, pf: PF, count: int) -> tuple[str, str]:
    if not pf.total_vfs:
        return "it has no SR-IOV", "its driver or the BIOS may have it switched off"
    if count < 0 or count > pf.total_vfs:
        return f"it can have 0 to {pf.total_vfs} VFs, not {count}", "some NICs set the most in their firmware"
    if pf.vendor == MELLANOX and count > MELLANOX_MOST:
        return f"Mellanox NICs have at most {MELLANOX_MOST} VFs, not {count}", ""
    if pf.guarded:
        return (
            f"the node needs it: {pf.guarded}",
            "its VFs are made before the node uses it, and marked externallyManaged",
        )
    needed = next((vf for vf in pf.vfs if vf.guarded), None)
    if needed is not None:
        return f"the node needs its VF {needed.index} ({needed.bdf}): {needed.guarded}", ""
    used = [_held(draft, vf) for vf in pf.vfs if vf.bdf in draft.held]
    if used:
        shown = ", ".join(used[:_SHOWN]) + (" ..." if len(used) > _SHOWN else "")
        return (
            f"{len(used)} of its {pf.num_vfs} VFs {'is' if len(used) == 1 else 'are'} in use: {shown}",
            "to change their number, all VFs have to be removed first: move these pods away",
        )
    return "", ""


def _plan_mtu(draft: _Draft, pf: PF, mtu: int, policy: str) -> None:
    if not mtu or not pf.netdev or mtu == pf.mtu:
        return
    used = [_held(draft, vf) for vf in pf.vfs if vf.bdf in draft.held]
    if pf.guarded:
        draft.refuse(title(pf), f"its MTU stays {pf.mtu}: the node needs it: {pf.guarded}", "", policy)
    elif mtu < pf.mtu and used:
        draft.refuse(title(pf), f"its MTU stays {pf.mtu}: VFs are in use that may rely on it: {used[0]}", "", policy)
    else:
        step = Step(change=Change.MTU, pf=pf.bdf, bdf=pf.bdf, before=str(pf.mtu), value=str(mtu), policy=policy)
        draft.steps.append(step)


def _plan_vfs(draft: _Draft, pf: PF, policies: Sequence[Policy]) -> None:
    """Drivers and MTUs of VFs, also of those that the steps before will make."""
    counts = [step.number for step in draft.steps if step.change is Change.NUMVFS and step.pf == pf.bdf]
    count = counts[-1] if counts else pf.num_vfs
    there = {} if counts else {vf.index: vf for vf in pf.vfs}
    for index in range(count):
        policy = next((each for each in policies if each.nics.covers(pf.netdev, index)), None)
        if policy is not None and (counts or index in there):
            _plan_vf(draft, pf, index, there.get(index), policy)
    if pf.vendor == MELLANOX and any(policy.userspace for policy in policies):
        draft.notes.append(f"{title(pf)} is Mellanox: DPDK drives it through the kernel's driver, not {VFIO}")


def _plan_vf(draft: _Draft, pf: PF, index: int, vf: VF | None, policy: Policy) -> None:
    wanted = []
    if policy.userspace and (vf is None or vf.driver != VFIO):
        wanted.append((Change.DRIVER, vf.driver if vf else "", VFIO))
    elif not policy.userspace and vf is not None and (vf.driver in USERSPACE or not vf.driver):
        wanted.append((Change.DRIVER, vf.driver, ""))
    if policy.mtu and not policy.userspace and (vf is None or (vf.netdev and vf.mtu != policy.mtu)):
        wanted.append((Change.MTU, str(vf.mtu) if vf else "", str(policy.mtu)))
    if not wanted:
        return
    if vf is not None and (vf.guarded or vf.bdf in draft.held):
        changes = " and ".join(f"{change} {before or 'none'}" for change, before, _ in wanted)
        why = f"the node needs it: {vf.guarded}" if vf.guarded else f"it is in use: {_held(draft, vf)}"
        draft.refuse(f"VF {index} of {title(pf)}", f"stays with {changes}: {why}", "", policy.name)
        return
    for change, before, value in wanted:
        bdf = vf.bdf if vf else ""
        draft.steps.append(
            Step(change=change, pf=pf.bdf, bdf=bdf, vf=index, before=before, value=value, policy=policy.name)
        )


def _held(draft: _Draft, vf: VF) -> str:
    holder = draft.held.get(vf.bdf, "")
    return f"{vf.bdf} by {holder}" if holder else vf.bdf
