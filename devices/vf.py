"""A VF's settings at its PF, as planned in `devices.vf_plan`: carried out with read-back, and put back.

Each function blocks, for 2 seconds a step when a driver is busy: call it from a worker thread.
"""

import errno
from collections.abc import Collection, Mapping, Sequence
from typing import Final, Protocol

import msgspec

from devices.errors import DeviceError, KernelError
from devices.linux.netdevs import Change, Netdev
from devices.linux.pci import USERSPACE
from devices.linux.sysfs import PciRecord
from devices.linux.vfs import NO_MAC, SetMac, SetRate, Step, VFState, describe
from devices.vf_plan import (
    VFConfig,
    VFError,
    as_shown,
    asked,
    difference,
    plan_restore,
    plan_vf,
    reading,
    took,
    touched_by,
)

__all__ = [
    "Kernel",
    "Place",
    "VFConfig",
    "VFError",
    "apply",
    "as_shown",
    "asked",
    "difference",
    "locate",
    "plan_restore",
    "plan_vf",
    "read_state",
    "restore",
    "touched_by",
]

TRIES: Final = 20
PAUSE: Final = 0.1
"""How often a driver is asked, and the seconds in between: a VF's driver may be resetting, as upstream found."""

_NOT_A_MAC = frozenset({errno.EINVAL, errno.EADDRNOTAVAIL, errno.EOPNOTSUPP})


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """Where a VF is now. `pf_ifindex` is 0 when no kernel driver has its PF, `netdev` "" when no interface is here."""

    bdf: str
    pf: str
    index: int
    driver: str
    pf_netdev: str = ""
    pf_ifindex: int = 0
    pf_mtu: int = 0
    netdev: str = ""

    @property
    def userspace(self) -> bool:
        """Whether a program drives it (DPDK)."""
        return self.driver in USERSPACE


class Kernel(Protocol):
    """The kernel, as far as VFs need it. `netns` is a path, "" the host. Methods block, and raise DeviceError."""

    def device(self, bdf: str) -> PciRecord | None:
        """The device, as sysfs shows it."""

    def states(self, pf_ifindex: int) -> Mapping[int, VFState]:
        """The VFs of a PF by number."""

    def set_vf(self, pf_ifindex: int, vf: int, step: Step) -> None:
        """Change a VF through its PF."""

    def netdevs(self, netns: str) -> Sequence[Netdev]:
        """All interfaces of a namespace."""

    def change(self, netns: str, index: int, wanted: Change) -> None:
        """Change an interface."""

    def move(self, source: str, index: int, target: str, name: str) -> None:
        """Move an interface to another namespace, under a name there."""

    def add_altname(self, netns: str, index: int, name: str) -> None:
        """Give an interface one more name."""

    def drop_altname(self, netns: str, index: int, name: str) -> None:
        """Take one of its other names away."""

    def prepare(self, netns: str, name: str) -> None:
        """Have an interface say so when its address changes; does what it can."""

    def pause(self, seconds: float) -> None:
        """Wait."""


def locate(kernel: Kernel, bdf: str) -> Place:
    """Where the VF is.

    :raises VFError: there is no such device, or it is no VF.
    """
    record = kernel.device(bdf)
    if record is None:
        raise VFError(f"there is no network device {bdf}", hint="`multusctl devices` lists those that are", gone=True)
    if record.physfn is None or record.vf_index < 0:
        raise VFError(f"{bdf} is no VF", hint="deviceID must be a VF's address; a PF can be given by host-device")
    pf = kernel.device(record.physfn)
    uplink = pf.netdev if pf is not None else None
    return Place(
        bdf=bdf,
        pf=record.physfn,
        index=record.vf_index,
        driver=record.driver,
        pf_netdev=uplink.name if uplink else "",
        pf_ifindex=uplink.ifindex if uplink else 0,
        pf_mtu=uplink.mtu if uplink else 0,
        netdev=record.netdev.name if record.netdev else "",
    )


def read_state(kernel: Kernel, place: Place) -> VFState | None:
    """The VF as its PF has it; None when the PF's driver tells nothing, as in virtual machines.

    :raises KernelError: it could not be read.
    """
    return kernel.states(place.pf_ifindex).get(place.index) if place.pf_ifindex else None


def apply(kernel: Kernel, place: Place, steps: Sequence[Step]) -> VFState | None:
    """Carry out the steps, each read back; the VF as the last one left it, None when there were none.

    After a failure those before it stand, for `restore` to undo.

    :raises VFError: the driver refused one, or took it without effect.
    :raises KernelError: the PF could not be read.
    """
    now: VFState | None = None
    for step in steps:
        now = _carry_out(kernel, place, step)
    return now


def restore(kernel: Kernel, place: Place, original: VFState, touched: Collection[str], *, own_mac: str = "") -> None:
    """Put the VF's settings back: all that can be, whatever fails.

    A driver that cannot take an administrative MAC away again is given `own_mac`, which the VF had by itself: left
    with a pod's, two interfaces would have the same one day.

    :raises DeviceError: the first failure, after everything was tried.
    """
    now = read_state(kernel, place)
    if now is None:
        return
    failures: list[DeviceError] = []
    for step in plan_restore(original, now, touched):
        try:
            _put_back(kernel, place, step, own_mac)
        except DeviceError as error:
            failures.append(error)
    if failures:
        raise failures[0]


def _put_back(kernel: Kernel, place: Place, step: Step, own_mac: str) -> None:
    try:
        _carry_out(kernel, place, step)
    except VFError as error:
        if step != SetMac(mac=NO_MAC) or not own_mac or error.code not in _NOT_A_MAC:
            raise
        _carry_out(kernel, place, SetMac(mac=own_mac))


def _carry_out(kernel: Kernel, place: Place, step: Step) -> VFState:
    now: VFState | None = None
    for attempt in range(TRIES):
        if attempt:
            kernel.pause(PAUSE)
        try:
            kernel.set_vf(place.pf_ifindex, place.index, step)
        except KernelError as error:
            if error.retry and attempt + 1 < TRIES:
                continue
            raise _refused(place, step, error) from error
        now = kernel.states(place.pf_ifindex).get(place.index)
        if now is not None and took(step, now):
            return now
    shown = reading(step, now) if now is not None else "no such VF"
    raise VFError(
        f"the driver of {place.pf_netdev} took {describe(step)} for VF {place.index} ({place.bdf}), but has {shown}",
        hint="its firmware or driver may not be able to do this",
    )


def _refused(place: Place, step: Step, error: KernelError) -> VFError:
    what = f"{place.pf_netdev} does not set {describe(step)} for VF {place.index} ({place.bdf}): {error.reason}"
    if error.code in (errno.EOPNOTSUPP, errno.EPROTONOSUPPORT):
        hint = "its driver cannot do this: take it out of the network's configuration"
    elif error.code in (errno.EINVAL, errno.ERANGE, errno.EADDRNOTAVAIL):
        hint = "its driver does not take this value"
        if isinstance(step, SetRate):
            hint += "; some take rates only while the link of the PF is up"
    elif error.code in (errno.EPERM, errno.EACCES):
        hint = "root is needed (CAP_NET_ADMIN)"
    else:
        hint = error.hint
    return VFError(what, hint=hint, retry=error.retry, code=error.code)
