"""What `multusctl devices` shows: NICs and VFs, with what their PFs, the pools' config and the journal say of them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from devices import guard, inventory, pools
from devices.errors import DeviceError
from devices.inventory import PF, VF, Inventory
from devices.linux import netns, vfs
from devices.linux.sysfs import Sysfs
from devices.linux.vfs import NO_MAC, VFState
from devices.pool_file import read_config
from multus.cni.result import parse_result
from multus.errors import MultusError
from multus.journal import JournalError, read_journal
from multus.sandbox import Attachment, Sandbox

SYSFS: Final = Path("/sys")


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a device: the pod as namespace/name, the interface there, and the network it was given for."""

    pod: str
    interface: str
    network: str
    container: str
    state: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment, by PCI address. `notes` say what could not be found out."""

    inventory: Inventory
    states: Mapping[str, VFState] = {}
    pools: Mapping[str, str] = {}
    holders: Mapping[str, tuple[Holder, ...]] = {}
    notes: tuple[str, ...] = ()

    def mac(self, device: PF | VF) -> str:
        """The MAC that the device has on the wire: of a VF the administrative one, if it was given one."""
        state = self.states.get(device.bdf)
        administrative = state.mac if state is not None else None
        return administrative if administrative and administrative != NO_MAC else device.mac


def collect(*, sysfs: Path, journal: Path, config: Path) -> View:
    """Look at the hardware, and read the files that say more about it. What cannot be read becomes a note. Blocks."""
    notes: list[str] = []
    records = Sysfs(sysfs).read()
    reasons: Mapping[str, str] = {}
    states: Mapping[str, VFState] = {}
    if sysfs == SYSFS:  # of another, interfaces by these names and numbers are not ours
        try:
            reasons = guard.read()
        except DeviceError as error:
            notes.append(f"which NICs the node needs is not known: {error}")
    found = inventory.build(records, guarded=guard.devices(records, reasons))
    if sysfs == SYSFS:
        states = _states(found, notes)
    return View(
        inventory=found,
        states=states,
        pools=_pools(found, config, notes),
        holders=_holders(journal, notes),
        notes=tuple(notes),
    )


def _states(found: Inventory, notes: list[str]) -> dict[str, VFState]:
    states: dict[str, VFState] = {}
    parents = [pf for pf in found.pfs if pf.vfs and pf.ifindex]
    if not parents:
        return states
    try:
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            for pf in parents:
                try:
                    by_index = vfs.read(connection, pf.ifindex)
                except DeviceError as error:
                    notes.append(f"{pf.netdev} does not tell of its VFs: {error}")
                    continue
                states.update({vf.bdf: by_index[vf.index] for vf in pf.vfs if vf.index in by_index})
    except DeviceError as error:
        notes.append(f"PFs were not asked about their VFs: {error}")
    return states


def _pools(found: Inventory, config: Path, notes: list[str]) -> dict[str, str]:
    if not config.exists():
        return {}
    try:
        assigned = pools.assign(found, read_config(config))
    except DeviceError as error:
        notes.append(f"no pools: {error}")
        return {}
    return {bdf: member.resource for bdf, member in assigned.by_bdf.items()}


def _holders(journal: Path, notes: list[str]) -> dict[str, tuple[Holder, ...]]:
    if not journal.exists():  # nothing was ever attached here
        return {}
    try:
        sandboxes = read_journal(journal)
    except JournalError as error:
        notes.append(f"who holds a device is not known: {error.message}")
        return {}
    holders: dict[str, tuple[Holder, ...]] = {}
    for sandbox in sandboxes:
        for item in sandbox.attachments:
            for address in {item.device_id, *_reported(item)} - {""}:
                holders[address] = (*holders.get(address, ()), _holder(sandbox, item))
    return holders


def _reported(item: Attachment) -> set[str]:
    """PCI addresses in the attachment's result: a network may name its device itself, without a resource."""
    if item.result is None:
        return set()
    try:
        return {each.pci_id for each in parse_result(item.result, where="journal").interfaces if each.pci_id}
    except MultusError:
        return set()


def _holder(sandbox: Sandbox, item: Attachment) -> Holder:
    return Holder(
        pod=f"{sandbox.pod_namespace}/{sandbox.pod_name}",
        interface=item.ifname,
        network=item.network,
        container=sandbox.container_id,
        state=str(sandbox.state),
    )
