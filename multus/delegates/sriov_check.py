"""CHECK of `sriov`: what ADD made of a VF, by the record of it, against what it is now. Blocks."""

from devices.linux.netdevs import Netdev
from devices.linux.vfs import SetRate, VFState
from devices.vf import VFError, asked, difference, locate, read_state
from devices.vf_netdev import find_in_pod
from multus.cni import document
from multus.cni.document import DocumentError
from multus.cni.result import Interface, parse_result
from multus.delegates.sriov_conf import SriovConfError
from multus.delegates.sriov_record import Record
from multus.delegates.sriov_vf import PodKernel


def told(conf: bytes, ifname: str, version: str) -> Interface | None:
    """The pod's interface as the result of its network has it, by prevResult; None where that says nothing of it.

    :raises SriovConfError: prevResult cannot be read.
    :raises CNIError: it is no result.
    """
    try:
        raw = document.member(document.decode(conf), "prevResult")
    except DocumentError as error:
        raise SriovConfError(f"sriov: prevResult: {error}") from None
    if raw is None:
        return None
    result = parse_result(bytes(raw), where="sriov: prevResult", version=version)
    return next((each for each in result.interfaces if each.sandbox and each.name == ifname), None)


def drift(
    kernel: PodKernel, record: Record, netns: str, interface: Interface | None = None, *, tuned: bool = False
) -> list[str]:
    """A sentence for each difference between what was made and what is.

    `interface` is the one of the network's result: plugins that followed may have given it another MAC or MTU. `tuned`:
    one of them is `TUNING`.

    :raises DeviceError: it cannot be looked at.
    """
    try:
        place = locate(kernel, record.bdf)
    except VFError as error:
        if error.gone:
            return ["the device is gone"]
        raise
    problems = []
    if place.driver != record.driver:
        problems.append(f"its driver is {place.driver or 'none'} instead of {record.driver}")
    problems += _settings(record, read_state(kernel, place))
    if kernel.identity(netns) != record.netns_id:
        problems.append(f"{netns} is not the namespace that it was given to")
    elif record.netdev is not None and not place.userspace:
        problems += _interface(kernel, record, record.netdev, interface, tuned=tuned)
    return problems


def _settings(record: Record, state: VFState | None) -> list[str]:
    """What is different of that which the PF has of the VF."""
    steps = asked(record.original, record.wanted)
    if state is not None:
        return difference([_rounded(step, record) if isinstance(step, SetRate) else step for step in steps], state)
    # A PF that told nothing in the first place (as in a virtual machine) was not asked for anything.
    return ["its PF does not tell its settings any more"] if steps and record.original != VFState() else []


def _rounded(step: SetRate, record: Record) -> SetRate:
    return step if record.rates is None else SetRate(min_tx=record.rates[0], max_tx=record.rates[1])


def _interface(
    kernel: PodKernel, record: Record, before: Netdev, result: Interface | None, *, tuned: bool
) -> list[str]:
    now = find_in_pod(kernel, record.bdf, record.netns, record.ifname)
    if now is None:
        return [f"its interface {record.ifname} is not in the pod"]
    problems = []
    if now.name != record.ifname:
        problems.append(f"its interface is called {now.name} instead of {record.ifname}")
    if not now.master:  # a bond in the pod, say, gives its members a MAC and an MTU
        mac = (result.mac.lower() if result is not None else "") or record.wanted.mac
        if record.wanted.mac is not None and now.mac != mac:
            problems.append(f"{now.name} has MAC {now.mac} instead of {mac}")
        mtu = (result.mtu if result is not None else 0) or before.mtu
        if mtu and now.mtu != mtu and not tuned:
            problems.append(f"{now.name} has MTU {now.mtu} instead of {mtu}")
    if not now.up:
        problems.append(f"{now.name} is down")
    return problems
