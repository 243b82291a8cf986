"""What a plan for PFs and their VFs is made of, and how people read it. Pure."""

from collections.abc import Sequence
from enum import StrEnum

import msgspec

from devices.inventory import PF, Inventory


class Change(StrEnum):
    """What a step sets."""

    NUMVFS = "numvfs"
    MTU = "mtu"
    DRIVER = "driver"


class Step(msgspec.Struct, frozen=True, kw_only=True):
    """One change. `vf` is the number of the VF of `pf` that it is made on, -1 for the PF itself.

    A VF that a step before this one makes has no address yet: `bdf` is "" then, else that of what is changed. A driver
    "" is whichever the kernel has for the device.
    """

    change: Change
    pf: str
    bdf: str = ""
    vf: int = -1
    before: str = ""
    value: str = ""
    policy: str = ""

    @property
    def number(self) -> int:
        """The value of a count or an MTU."""
        return int(self.value)


class Refusal(msgspec.Struct, frozen=True, kw_only=True):
    """What a policy wants and does not get. `what` is a PF, a VF or the policy."""

    what: str
    reason: str
    hint: str = ""
    policy: str = ""

    def __str__(self) -> str:
        return f"{self.what}: {self.reason}" + (f" ({self.hint})" if self.hint else "")


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Steps in the order in which they must be made, what is refused, and what else is worth to be said."""

    steps: tuple[Step, ...] = ()
    refusals: tuple[Refusal, ...] = ()
    notes: tuple[str, ...] = ()


def title(pf: PF) -> str:
    """A PF in a sentence."""
    return f"{pf.netdev} ({pf.bdf})" if pf.netdev else pf.bdf


def describe(plan: Plan, inventory: Inventory | None = None) -> list[str]:
    """The plan for people, a line each; steps on several VFs of one PF that do the same share one.

    Refusals begin with "refused:", notes with "note:".
    """
    lines: list[str] = []
    at = 0
    while at < len(plan.steps):
        first, alike = plan.steps[at], [plan.steps[at]]
        for step in plan.steps[at + 1 :]:
            if _what(step) != _what(first):
                break
            alike.append(step)
        lines.append(_line(first, [step.vf for step in alike], inventory))
        at += len(alike)
    lines += [f"refused: {refusal}" for refusal in plan.refusals]
    lines += [f"note: {note}" for note in plan.notes]
    return lines or ["nothing to change"]


def _what(step: Step) -> tuple[object, ...]:
    return step.change, step.pf, step.before, step.value, step.policy, step.vf < 0


def _line(step: Step, indexes: Sequence[int], inventory: Inventory | None) -> str:
    found = inventory.by_bdf.get(step.pf) if inventory else None
    pf = title(found) if isinstance(found, PF) else step.pf
    subject = pf if step.vf < 0 else f"VF{'s' if len(indexes) > 1 else ''} {_compact(indexes)} of {pf}"
    by = f" (policy {step.policy})" if step.policy else ""
    if step.change is Change.NUMVFS:
        what = f"make {step.value} VFs" if step.number else f"remove all {step.before} VFs"
    elif step.change is Change.DRIVER:
        what = f"driver {step.before or 'none'} -> {step.value or 'of the kernel'}"
    else:
        what = f"MTU {step.before or '?'} -> {step.value}"
    return f"{subject}: {what}{by}"


def _compact(indexes: Sequence[int]) -> str:
    """0-3,5 for 0, 1, 2, 3, 5."""
    parts: list[list[int]] = []
    for index in sorted(indexes):
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return ",".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
