"""A VF's settings at its PF: from wanted to ordered changes, and the way back. Pure.

Source of the order: sriov-cni's ApplyVFConfig (VLAN, MAC, rates, spoofchk, trust, link state).
"""

from collections.abc import Collection, Sequence

import msgspec

from devices.errors import DeviceError, Fault
from devices.linux.vfs import (
    DOT1Q,
    NO_MAC,
    SetLinkState,
    SetMac,
    SetRate,
    SetSpoofchk,
    SetTrust,
    SetVlan,
    Step,
    VFState,
    describe,
)

_GROUPS = ("vlan", "mac", "rate", "spoofchk", "trust", "link_state")


class VFError(DeviceError):
    """A VF cannot be used as wanted; `gone` when there is no such device, `code` the kernel's errno, 0 for none."""

    fault = Fault.OPERATOR

    def __init__(self, message: str, *, hint: str = "", gone: bool = False, retry: bool = False, code: int = 0) -> None:
        super().__init__(message, hint=hint)
        self.gone = gone
        self.retry = retry
        self.code = code


class VFConfig(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What a VF is wanted to be; None leaves it as it is. Rates are in Mbit/s, 0 for no limit."""

    mac: str | None = None
    vlan: int | None = None
    qos: int = 0
    proto: int = DOT1Q
    spoofchk: bool | None = None
    trust: bool | None = None
    link_state: str | None = None
    min_tx: int | None = None
    max_tx: int | None = None


def asked(original: VFState, wanted: VFConfig) -> tuple[Step, ...]:
    """Every setting that is asked for, in order. Of the two rates, one that is not given is as the VF has it.

    :raises VFError: rates that contradict one another.
    """
    steps: list[Step] = []
    if wanted.vlan is not None:
        steps.append(SetVlan(vlan=wanted.vlan, qos=wanted.qos, proto=wanted.proto))
    if wanted.mac is not None:
        steps.append(SetMac(mac=wanted.mac))
    steps += _rates(original, wanted)
    if wanted.spoofchk is not None:
        steps.append(SetSpoofchk(on=wanted.spoofchk))
    if wanted.trust is not None:
        steps.append(SetTrust(on=wanted.trust))
    if wanted.link_state is not None:
        steps.append(SetLinkState(state=wanted.link_state))
    return tuple(steps)


def plan_vf(original: VFState, wanted: VFConfig) -> tuple[Step, ...]:
    """The changes that make a VF as wanted, in order; none for what it is already, which some drivers refuse to set.

    :raises VFError: rates that contradict one another.
    """
    return tuple(step for step in asked(original, wanted) if not _has(step, original))


def plan_restore(original: VFState, now: VFState, touched: Collection[str]) -> tuple[Step, ...]:
    """The changes that put back what differs of the `touched` groups, in order.

    The MAC always: a VF that is trusted may have changed it from inside. What the driver did not tell stays.
    """
    steps: list[Step] = []
    if "vlan" in touched and original.vlan is not None:
        before = (original.vlan, original.qos, original.proto if original.vlan else now.proto)
        if before != (now.vlan, now.qos, now.proto):
            steps.append(SetVlan(vlan=original.vlan, qos=original.qos or 0, proto=original.proto or DOT1Q))
    if original.mac is not None and original.mac != now.mac:
        steps.append(SetMac(mac=original.mac))
    rates = (original.min_tx, original.max_tx)
    if "rate" in touched and None not in rates and rates != (now.min_tx, now.max_tx):
        steps.append(SetRate(min_tx=original.min_tx or 0, max_tx=original.max_tx or 0))
    if "spoofchk" in touched and original.spoofchk is not None and original.spoofchk != now.spoofchk:
        steps.append(SetSpoofchk(on=original.spoofchk))
    if "trust" in touched and original.trust is not None and original.trust != now.trust:
        steps.append(SetTrust(on=original.trust))
    if "link_state" in touched and original.link_state is not None and original.link_state != now.link_state:
        steps.append(SetLinkState(state=original.link_state))
    return tuple(steps)


def touched_by(steps: Sequence[Step]) -> tuple[str, ...]:
    """The groups of settings that the steps change, as `plan_restore` takes them."""
    tags = {str(step.__struct_config__.tag) for step in steps}
    return tuple(group for group in _GROUPS if group in tags)


def difference(steps: Sequence[Step], now: VFState) -> list[str]:
    """A sentence for each setting that is not as it was made. What a driver does not tell is no difference."""
    return [f"it has {reading(step, now)} instead of {describe(step)}" for step in steps if not _stands(step, now)]


def as_shown(step: SetRate, now: VFState) -> SetRate:
    """The rates that the driver made of those, where it rounds and tells."""
    return SetRate(
        min_tx=step.min_tx if now.min_tx is None else now.min_tx,
        max_tx=step.max_tx if now.max_tx is None else now.max_tx,
    )


def _has(step: Step, now: VFState) -> bool:
    """Whether the VF is known to have it already."""
    match step:
        case SetVlan():  # where there is no VLAN, its protocol says nothing
            return (now.vlan, now.qos, now.proto if now.vlan else step.proto) == (step.vlan, step.qos, step.proto)
        case SetMac():
            return now.mac == step.mac
        case SetRate():
            return (now.min_tx, now.max_tx) == (step.min_tx, step.max_tx)
        case SetSpoofchk():
            return now.spoofchk == step.on
        case SetTrust():
            return now.trust == step.on
        case SetLinkState():
            return now.link_state == step.state


def _stands(step: Step, now: VFState) -> bool:
    """As `took`, of what was read back once: another rate than that is no rounding."""
    return as_shown(step, now) == step if isinstance(step, SetRate) else took(step, now)


def took(step: Step, now: VFState) -> bool:
    """Whether the VF shows it. What a driver does not tell cannot be asked for; rates may be rounded."""
    match step:
        case SetVlan():
            shown = (now.vlan, now.qos, now.proto if step.vlan else step.proto)
            return now.vlan is None or shown == (step.vlan, step.qos, step.proto)
        case SetMac():
            return now.mac is None or now.mac == step.mac or step.mac == NO_MAC
        case SetRate():
            pairs = ((step.min_tx, now.min_tx), (step.max_tx, now.max_tx))
            return all(have is None or bool(want) == bool(have) for want, have in pairs)
        case SetSpoofchk():
            return now.spoofchk in (None, step.on)
        case SetTrust():
            return now.trust in (None, step.on)
        case SetLinkState():
            return now.link_state in (None, step.state)


def reading(step: Step, now: VFState) -> str:
    match step:
        case SetVlan():
            return describe(SetVlan(vlan=now.vlan or 0, qos=now.qos or 0, proto=now.proto or DOT1Q))
        case SetMac():
            return f"mac {now.mac}"
        case SetRate():
            return describe(SetRate(min_tx=now.min_tx or 0, max_tx=now.max_tx or 0))
        case SetSpoofchk():
            return describe(SetSpoofchk(on=bool(now.spoofchk)))
        case SetTrust():
            return describe(SetTrust(on=bool(now.trust)))
        case SetLinkState():
            return f"link_state {now.link_state}"


def _rates(original: VFState, wanted: VFConfig) -> list[Step]:
    if wanted.min_tx is None and wanted.max_tx is None:
        return []
    least = (original.min_tx or 0) if wanted.min_tx is None else wanted.min_tx
    most = (original.max_tx or 0) if wanted.max_tx is None else wanted.max_tx
    if most and least > most:
        raise VFError(
            f"min_tx_rate {least} is above max_tx_rate {most}",
            hint="of these two, the one that the configuration does not give is as the VF has it",
        )
    return [SetRate(min_tx=least, max_tx=most)]
