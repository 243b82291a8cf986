"""`multusctl devices`: every NIC of this node with its VFs, and who holds them; the daemon need not run."""

import argparse
import sys
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from devices.inventory import PF, VF
from devices.linux.pci import USERSPACE
from devices.linux.uevents import Uevents
from devices.linux.vfs import QINQ, VFState
from multus.cli import device_map, device_view, output
from multus.cli.device_view import View
from multus.cli.places import add_arguments, places
from multus.files import replace

_SETTLE = 0.2  # seconds: what one change brings with it is shown together
_CLEAR = "\x1b[H\x1b[2J"
_HEADER: Final = (
    "VF",
    "ADDRESS",
    "NETDEV",
    "DRIVER",
    "LINK",
    "NUMA",
    "GROUP",
    "MAC",
    "VLAN",
    "TRUST",
    "SPOOFCHK",
    "MBIT/S",
    "POOL",
    "HELD BY",
)


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "devices",
        help="show NICs, their virtual functions, and who holds them",
        description="Every NIC of this node with its virtual functions (VFs), as it is now.",
    )
    add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.add_argument("--watch", action="store_true", help="go on, and show it again when something changes")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="draw a map of it into FILE instead")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show them, once or until interrupted."""
    _show(arguments, look(arguments))
    if arguments.watch:
        anyio.run(watch, arguments)
    return 0


def look(arguments: argparse.Namespace) -> View:
    """What there is to show."""
    return device_view.collect(places(arguments))


def tree(view: View) -> None:
    """Print PFs and below each its VFs."""
    for number, pf in enumerate(view.inventory.pfs):
        if number:
            print()
        print(_pf_line(pf, view))
        if pf.guarded:
            output.note(f"the node needs it, so it is never changed: {output.printable(pf.guarded)}")
        if pf.vfs:
            output.table(_HEADER, [_vf_row(vf, view) for vf in pf.vfs], indent="  ")
    for note in view.notes:
        print(f"note: {output.printable(note)}", file=sys.stderr)


def document(view: View) -> dict[str, object]:
    """The same for programs."""
    return {"devices": [_record(pf, view) for pf in view.inventory.pfs], "notes": list(view.notes)}


async def watch(arguments: argparse.Namespace) -> None:
    """Show them again whenever something is different, until cancelled."""
    shown = look(arguments)
    async with Uevents(arguments.sysfs) as changes:
        async for _ in changes:
            await anyio.sleep(_SETTLE)
            now = await anyio.to_thread.run_sync(look, arguments)
            if now != shown:
                _show(arguments, now)
            shown = now


def _show(arguments: argparse.Namespace, view: View) -> None:
    if arguments.svg is not None:
        replace(arguments.svg, device_map.draw(view).encode(), mode=0o644)
        print(f"{arguments.svg}: {_count(view)}", flush=True)
        return
    if arguments.json:
        body = msgspec.json.encode(document(view))
        print((body if arguments.watch else msgspec.json.format(body, indent=2)).decode(), flush=True)
        return
    if arguments.watch and sys.stdout.isatty():
        print(_CLEAR, end="")
    if view.inventory.pfs:
        tree(view)
    else:
        print("no network devices on this machine's PCI buses")
    if arguments.watch:
        print(flush=True)


def _count(view: View) -> str:
    held = sum(bool(holders(vf, view)) for vf in view.inventory.vfs)
    return f"{len(view.inventory.pfs)} NICs, {len(view.inventory.vfs)} VFs, {held} held"


def _pf_line(pf: PF, view: View) -> str:
    name = output.paint(output.printable(pf.netdev or "(no netdev)"), "bold")
    facts = [
        f"driver {pf.driver or 'none'}",
        *([f"link {pf.link}"] if pf.link else []),
        *([f"NUMA {pf.numa}"] if pf.numa >= 0 else []),
        *([f"group {pf.iommu_group}"] if pf.iommu_group is not None else []),
        *([f"MAC {pf.mac}"] if pf.mac else []),
        *([f"MTU {pf.mtu}"] if pf.mtu else []),
        f"{len(pf.vfs)} of {pf.total_vfs} VFs" if pf.total_vfs else "no SR-IOV",
        *([f"pool {view.pools[pf.bdf]}"] if pf.bdf in view.pools else []),
        *([f"held by {holders(pf, view)}"] if holders(pf, view) else []),
        *([f"not healthy: {view.sick[pf.bdf]}"] if pf.bdf in view.sick else []),
    ]
    return f"{pf.bdf}  {name}  {output.printable(', '.join(facts))}"


def _vf_row(vf: VF, view: View) -> tuple[str, ...]:
    state = view.states.get(vf.bdf, VFState())
    held = vf.bdf in view.holders
    return (
        str(vf.index) if vf.index >= 0 else "?",
        vf.bdf,
        vf.netdev or ("(in the pod)" if held and vf.driver and vf.driver not in USERSPACE else "-"),
        vf.driver or "none",
        vf.link or "-",
        str(vf.numa) if vf.numa >= 0 else "-",
        vf.iommu_group or "-",
        view.mac(vf) or "-",
        _vlan(state),
        _switch(state.trust),
        _switch(state.spoofchk),
        _rate(state),
        view.pools.get(vf.bdf, "-") + (f" [{view.sick[vf.bdf]}]" if vf.bdf in view.sick else ""),
        holders(vf, view) or (f"the node: {vf.guarded}" if vf.guarded else "-"),
    )


def holders(device: PF | VF, view: View) -> str:
    """Who has it, in one line: pods, else whom it was given to."""
    pods = (
        f"{each.pod} {each.interface} ({each.network})" + (f" [{each.state}]" if each.state != "attached" else "")
        for each in view.holders.get(device.bdf, ())
    )
    return ", ".join(pods) or view.owners.get(device.bdf, "")


def _vlan(state: VFState) -> str:
    if state.vlan is None:
        return "-"
    qos = f" qos {state.qos}" if state.qos else ""
    return f"{state.vlan}{qos}{' 802.1ad' if state.proto == QINQ and state.vlan else ''}" if state.vlan else "none"


def _switch(value: bool | None) -> str:
    return "-" if value is None else "on" if value else "off"


def _rate(state: VFState) -> str:
    """The least and the most it may send."""
    if state.min_tx is None and state.max_tx is None:
        return "-"
    return f"{state.min_tx}-{state.max_tx or ''}" if state.min_tx else str(state.max_tx or "any")


def _record(device: PF | VF, view: View) -> dict[str, object]:
    said: dict[str, object] = {"address": device.bdf}
    if isinstance(device, VF):
        said |= {"index": device.index}
    said |= {
        "netdev": device.netdev,
        "driver": device.driver,
        "vendor": device.vendor,
        "device": device.device,
        "link": device.link,
        "linkType": device.link_type,
        "numa": device.numa if device.numa >= 0 else None,
        "iommuGroup": device.iommu_group,
        "mac": view.mac(device),
        "mtu": device.mtu or None,
        "rdma": list(device.rdma),
        "pool": view.pools.get(device.bdf),
        "unhealthy": view.sick.get(device.bdf),
        "guarded": device.guarded or None,
        "owner": view.owners.get(device.bdf),
        "holders": [
            {
                "pod": each.pod,
                "interface": each.interface,
                "network": each.network,
                "containerID": each.container,
                "state": each.state,
            }
            for each in view.holders.get(device.bdf, ())
        ],
    }
    if isinstance(device, VF):
        state = view.states.get(device.bdf)
        return said | {"settings": None if state is None else _settings(state)}
    return said | {
        "totalVFs": device.total_vfs,
        "numVFs": device.num_vfs,
        "vfs": [_record(vf, view) for vf in device.vfs],
    }


def _settings(state: VFState) -> dict[str, object]:
    return {
        "adminMac": state.mac,
        "vlan": state.vlan,
        "vlanQoS": state.qos,
        "vlanProto": None if state.proto is None else f"0x{state.proto:04x}",
        "trust": state.trust,
        "spoofchk": state.spoofchk,
        "linkState": state.link_state,
        "minTxRate": state.min_tx,
        "maxTxRate": state.max_tx,
    }
