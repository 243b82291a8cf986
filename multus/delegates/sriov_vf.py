"""What `sriov` does to a VF, step by step in a worker thread: looked at, changed, looked at again, put back."""

import logging
from collections.abc import Sequence
from typing import Protocol

import msgspec

from devices.errors import DeviceError, NamespaceError
from devices.linux.addressing import NewRoute
from devices.linux.netdevs import Netdev
from devices.linux.vfs import NO_MAC, SetMac, SetRate, Step, VFState
from devices.vf import (
    Kernel,
    Place,
    VFError,
    apply,
    as_shown,
    asked,
    locate,
    plan_vf,
    read_state,
    restore,
    touched_by,
)
from devices.vf_netdev import host_netdev, lend, take_back
from dpdk.plans import BIFURCATED, BindPlan
from multus.cni.result import Interface, Result
from multus.delegates.plugin import Call
from multus.delegates.sriov_conf import SriovConf
from multus.delegates.sriov_record import Record

logger = logging.getLogger(__name__)


class PodKernel(Kernel, Protocol):
    """The kernel, with what a pod's interface needs beside that."""

    def identity(self, netns: str) -> str | None:
        """Which namespace is at the path; None for none."""

    def configure(self, netns: str, netdev: Netdev, addresses: Sequence[str], routes: Sequence[NewRoute]) -> None:
        """Give an interface addresses and routes."""

    def announce(self, netns: str, netdev: Netdev, addresses: Sequence[str]) -> None:
        """Tell neighbours; does what it can."""


class Prepared(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment that is about to be made. `state` is the VF's at its PF, as it was before `steps`."""

    record: Record
    place: Place
    steps: tuple[Step, ...]
    state: VFState = VFState()

    @property
    def admin_mac(self) -> str:
        """The MAC that a program will find its VF to have; "" when it will choose one."""
        mac = self.record.wanted.mac or self.state.mac or ""
        return "" if mac == NO_MAC else mac


def prepare(kernel: PodKernel, conf: SriovConf, call: Call, boot_id: str, plan: BindPlan | None = None) -> Prepared:
    """Look at the VF and plan; all that can be refused is refused here. With `plan`, it will be bound by that first.

    :raises DeviceError: the VF cannot be given to this pod, or not be made as wanted.
    """
    place = locate(kernel, conf.device)
    if not place.netdev and not place.userspace and plan is None:
        raise VFError(
            f"VF {conf.device} has no interface, and its driver is {place.driver or 'none'}",
            hint="bind it to its kernel driver or to vfio-pci; or another namespace has its interface",
            retry=bool(place.driver),
        )
    netns_id = kernel.identity(call.netns)
    if netns_id is None:
        raise NamespaceError(f"there is no network namespace at {call.netns}", gone=True)
    netdev = None if place.userspace or plan is not None else host_netdev(kernel, place.netdev)
    state = read_state(kernel, place)
    steps = plan_vf(state or VFState(), conf.vf)
    if state is None:
        steps = _without_pf(place, steps, alone=netdev is None)
    record = Record(
        bdf=conf.device,
        container_id=call.container_id,
        ifname=call.ifname,
        netns=call.netns,
        netns_id=netns_id,
        boot_id=boot_id,
        network=conf.name,
        driver=plan.target if plan is not None else place.driver,
        original=state or VFState(),
        netdev=netdev,
        touched=touched_by(steps),
        wanted=conf.vf,
        bound=plan is not None,
        beside=conf.driver in BIFURCATED,
        own_mac=plan.record.address if plan is not None and plan.record is not None else "",
    )
    return Prepared(record=record, place=place, steps=steps, state=state or VFState())


def attach(kernel: PodKernel, prepared: Prepared) -> tuple[Record, Netdev | None]:
    """Make the VF as wanted and give it to the pod: the record, another one when the driver rounded what was asked for,
    and the interface there, None for a VF that a program drives.

    :raises DeviceError: what failed; `put_back` undoes what was done.
    """
    state = apply(kernel, prepared.place, prepared.steps)
    record = _as_made(prepared.record, state) if state is not None else prepared.record
    if record.netdev is None:
        return record, None
    return record, lend(kernel, record.netdev, record.netns, record.ifname, record.wanted.mac)


def _as_made(record: Record, state: VFState) -> Record:
    for step in asked(record.original, record.wanted):
        if isinstance(step, SetRate) and (shown := as_shown(step, state)) != step:
            return msgspec.structs.replace(record, rates=(shown.min_tx, shown.max_tx))
    return record


def reported(call: Call, prepared: Prepared, netdev: Netdev | None) -> Interface:
    """As upstream reports it: also for a program's VF, which is no interface in the pod but has its address told."""
    if netdev is not None:
        mac, mtu = netdev.mac, netdev.mtu
    else:
        mac, mtu = prepared.admin_mac, prepared.place.pf_mtu
    return Interface(name=call.ifname, mac=mac, mtu=mtu, sandbox=call.netns, pci_id=prepared.record.bdf)


def give_addresses(kernel: PodKernel, netns: str, netdev: Netdev, result: Result) -> None:
    """Give the interface what the address plugin chose, and tell the neighbours.

    :raises DeviceError: the kernel refused.
    """
    addresses = [ip.address for ip in result.ips]
    kernel.configure(netns, netdev, addresses, _routes(result))
    try:
        kernel.announce(netns, netdev, addresses)
    except DeviceError as error:
        logger.debug("the neighbours of %s are not told: %s", netdev.name, error)


def put_back(kernel: PodKernel, record: Record) -> bool:
    """Put the VF back as it was: its settings, then its interface. False when that is nowhere to be found.

    A VF that is gone needs nothing. Can be repeated, whatever was done before.

    :raises DeviceError: the first failure, after everything was tried.
    """
    try:
        place = locate(kernel, record.bdf)
    except VFError as error:
        if error.gone:
            logger.warning("VF %s is gone: nothing is to be put back", record.bdf)
            return True
        raise
    failures: list[DeviceError] = []
    try:
        own_mac = record.netdev.mac if record.netdev is not None else record.own_mac
        restore(kernel, place, record.original, record.touched, own_mac=own_mac)
    except DeviceError as error:
        failures.append(error)
    found = True
    # Bound to another driver meanwhile, there is no interface that could be put back.
    if record.netdev is not None and place.driver and not place.userspace:
        try:
            netns = record.netns if is_there(kernel, record) else ""
            found = take_back(kernel, record.bdf, record.netdev, netns, record.ifname)
        except DeviceError as error:
            failures.append(error)
    for other in failures[1:]:
        logger.error("VF %s: %s", record.bdf, other)
    if failures:
        raise failures[0]
    return found


def is_there(kernel: PodKernel, record: Record) -> bool:
    """Whether the pod's namespace exists: that one, not another at its path."""
    now = kernel.identity(record.netns) if record.netns else None
    return now is not None and record.netns_id in ("", now)


def is_held(kernel: PodKernel, record: Record, boot_id: str) -> bool:
    """Whether the VF is in use by whoever is on record."""
    return not record.released and record.boot_id == boot_id and is_there(kernel, record)


def _without_pf(place: Place, steps: Sequence[Step], *, alone: bool) -> tuple[Step, ...]:
    """What is possible without the PF, as in a virtual machine: only the MAC, which the interface can set itself.

    :raises VFError: more is wanted.
    """
    asked = [step for step in steps if alone or not isinstance(step, SetMac)]
    if asked:
        names = ", ".join(touched_by(asked))
        pf = place.pf_netdev or place.pf
        raise VFError(
            f"VF {place.bdf}: {names} cannot be set, for {pf} tells nothing of its VFs",
            hint="the PF needs its kernel driver on this node; take these settings out for a VF given to a VM",
        )
    return ()


def _routes(result: Result) -> list[NewRoute]:
    """A route without a gateway goes through that of the first address of its family, as in ConfigureIface."""
    gateways: dict[bool, str] = {}
    for ip in result.ips:
        if ip.gateway:
            gateways.setdefault(":" in ip.address, ip.gateway)
    return [
        NewRoute(
            destination=route.dst,
            gateway=route.gw or gateways.get(":" in route.dst, ""),
            mtu=route.mtu,
            advmss=route.advmss,
            priority=route.priority,
            table=route.table,
            scope=route.scope,
        )
        for route in result.routes
    ]
