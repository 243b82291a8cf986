"""What `multusctl devices` shows: NICs and VFs, with what their PFs, the pools' config and the journal say of them."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from devices import guard, inventory, pools
from devices.errors import DeviceError
from devices.inventory import PF, VF, Inventory
from devices.linux import netns, vfs
from devices.linux.pci import SYSFS
from devices.linux.sysfs import Sysfs
from devices.linux.vfs import NO_MAC, VFState
from multus.byhand_asks import Placed
from multus.cli import asking, vf_uses
from multus.cli.places import Places, read_pools
from multus.device_ids import device_ids
from multus.errors import MultusError
from multus.journal import JournalError, read_journal
from multus.sandbox import Attachment, Sandbox


class Holder(msgspec.Struct, frozen=True, kw_only=True):
    """Who has a device: the pod as namespace/name, the interface there, and the network it was given for."""

    pod: str
    interface: str
    network: str
    container: str
    state: str


class View(msgspec.Struct, frozen=True, kw_only=True):
    """Everything at one moment, by PCI address. `sick` has the reason why a pool's device is not healthy, `owners`
    those that devices were given to on this node; `notes` say what could not be found out.
    """

    inventory: Inventory
    states: Mapping[str, VFState] = {}
    pools: Mapping[str, str] = {}
    sick: Mapping[str, str] = {}
    holders: Mapping[str, tuple[Holder, ...]] = {}
    owners: Mapping[str, str] = {}
    notes: tuple[str, ...] = ()

    def mac(self, device: PF | VF) -> str:
        """The MAC that the device has on the wire: of a VF the administrative one, if it was given one."""
        state = self.states.get(device.bdf)
        administrative = state.mac if state is not None else None
        return administrative if administrative and administrative != NO_MAC else device.mac


def collect(where: Places) -> View:
    """Look at the hardware, and at what says more about it: the daemon where one runs, else the files that it would
    read. What cannot be had becomes a note. Blocks.
    """
    notes: list[str] = []
    sysfs = where.sysfs
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
    placed = _placed(found, where, notes)
    return View(
        inventory=found,
        states=states,
        pools={bdf: each.resource for bdf, each in placed.items()},
        sick={bdf: each.reason for bdf, each in placed.items() if each.reason},
        holders=_holders(where.journal, notes),
        owners=_owners(where.journal, notes),
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


def _placed(found: Inventory, where: Places, notes: list[str]) -> Mapping[str, Placed]:
    """Pools and health by address: the running daemon's, which remembers what the files cannot say."""
    if where.ask and not where.told:
        try:
            told = asking.placed(where.socket)
        except MultusError as error:
            notes.append(f"pools are those of the files, as the daemon does not tell: {error}")
        else:
            if told is not None:
                return told
    try:
        assigned = pools.assign(found, read_pools(where, found))
    except (DeviceError, MultusError) as error:
        notes.append(f"no pools: {error}")
        return {}
    return {bdf: Placed(resource=each.resource, reason=each.reason) for bdf, each in assigned.by_bdf.items()}


def _owners(journal: Path, notes: list[str]) -> dict[str, str]:
    try:
        return vf_uses.allocated(journal)
    except MultusError as error:
        notes.append(f"what was given out is not known: {error.message}")
        return {}


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
            for address in device_ids(item):
                holders[address] = (*holders.get(address, ()), _holder(sandbox, item))
    return holders


def _holder(sandbox: Sandbox, item: Attachment) -> Holder:
    return Holder(
        pod=f"{sandbox.pod_namespace}/{sandbox.pod_name}",
        interface=item.ifname,
        network=item.network,
        container=sandbox.container_id,
        state=str(sandbox.state),
    )
