"""`multusctl vf`: virtual functions by hand.

What would cut the node off, take a VF from who uses it, or be undone by a policy is refused.
"""

import argparse
from typing import Any

import msgspec

from devices.config import nearest, quoted
from devices.inventory import PF, VF, Inventory
from devices.linux.sysfs import AddressError, Sysfs, parse_address
from multus.byhand_asks import Ask
from multus.cli import devices, output, vf_policies, vf_uses
from multus.cli.places import add_arguments, places
from multus.cli.vf_direct import carry_out, create
from multus.cli.vf_uses import VfError
from multus.errors import from_devices
from multus.numvfs import look, refuse_managed


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "vf", help="create, show, allocate and release virtual functions", description="Virtual functions by hand."
    )
    common = argparse.ArgumentParser(add_help=False)
    add_arguments(common)
    change = argparse.ArgumentParser(add_help=False, parents=[common])
    change.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    commands = parser.add_subparsers(dest="vf_command", required=True, metavar="COMMAND")
    for name, run_, parent, text in (
        ("create", _create, change, "have a PF make N virtual functions; 0 removes them"),
        ("show", _show, common, "show one PF or VF, or all"),
        ("plan", _plan, common, "say what the SR-IOV policies would change now"),
        ("allocate", _allocate, change, "take VFs out of a pool, durably"),
        ("release", _release, change, "give a VF back that was allocated by hand"),
    ):
        command = commands.add_parser(name, help=text, description=text, parents=[parent])
        command.set_defaults(run=run, run_vf=run_)
        if name == "create":
            command.add_argument("device", metavar="PF", help="its interface or PCI address")
            command.add_argument("count", metavar="N", type=int)
        elif name == "plan":
            vf_policies.add_arguments(command)
        elif name == "show":
            command.add_argument("device", metavar="BDF|PF", nargs="?", default="")
            command.add_argument("--json", action="store_true", help="for programs")
        elif name == "allocate":
            command.add_argument(
                "pool", metavar="POOL", help="a resource: prefix/name, or the name when it is the only"
            )
            command.add_argument("--count", type=int, default=1, help="how many (%(default)s)")
            command.add_argument("--owner", default="operator", help="for whom, to be shown (%(default)s)")
        else:
            command.add_argument("device", metavar="BDF", help="its PCI address or interface")


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    with from_devices():
        return int(arguments.run_vf(arguments))


def _show(arguments: argparse.Namespace) -> int:
    view = devices.look(arguments)
    if arguments.device:
        found = _find(view.inventory, arguments.device)
        if isinstance(found, VF):
            pf = view.inventory.pf_of(found)
            shown = (msgspec.structs.replace(pf, vfs=(found,)),) if pf is not None else ()
        else:
            shown = (found,)
        view = msgspec.structs.replace(view, inventory=Inventory(pfs=shown, by_bdf=view.inventory.by_bdf))
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(devices.document(view)), indent=2).decode())
        return 0
    devices.tree(view)
    return 0


def _create(arguments: argparse.Namespace) -> int:
    where, found = places(arguments), look(Sysfs(arguments.sysfs))
    pf = _find(found, arguments.device)
    if isinstance(pf, VF):
        raise VfError(f"{pf.bdf} is a VF itself", hint=f"its PF is {pf.pf_netdev or pf.pf}")
    refuse_managed(found, pf, arguments.count, vf_policies.of_node(where.settings, found))
    made = create(where, Ask(device=pf.bdf, count=arguments.count, dry=arguments.dry_run))
    if not made.changed:
        for line in made.lines:
            print(output.printable(line))
        return 0
    for line in made.lines:
        output.note(output.printable(line))
    output.good(f"{pf.netdev or pf.bdf} has {arguments.count} VFs")
    for line in made.vfs:
        output.note(output.printable(line))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    found = look(Sysfs(arguments.sysfs))
    return vf_policies.show(places(arguments).settings, arguments.policies, found, _held(found, arguments))


def _allocate(arguments: argparse.Namespace) -> int:
    ask = Ask(pool=arguments.pool, count=arguments.count, owner=arguments.owner, dry=arguments.dry_run)
    given = carry_out(places(arguments), "allocate", ask)
    if arguments.dry_run:
        print(output.printable(f"would allocate {', '.join(given.devices)} of {given.resource} to {arguments.owner}"))
        return 0
    for bdf in given.devices:
        print(bdf)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    given = carry_out(places(arguments), "release", Ask(device=arguments.device, dry=arguments.dry_run))
    (bdf,) = given.devices
    if arguments.dry_run:
        print(output.printable(f"would release {bdf}, allocated {given.owner}"))
    else:
        output.good(f"{bdf} is free")
    return 0


def _find(found: Inventory, text: str) -> PF | VF:
    """A device by its interface or PCI address."""
    try:
        device = found.by_bdf.get(parse_address(text))
    except AddressError:
        device = None
    device = device or found.by_netdev(text)
    if device is None:
        pfs = [name for pf in found.pfs for name in (pf.netdev, pf.bdf) if name]
        vfs = [name for vf in found.vfs for name in (vf.netdev, vf.bdf) if name]
        near = nearest(text, pfs) or nearest(text, vfs)
        hint = f'did you mean "{near}"?' if near else "`multusctl devices` shows all"
        raise VfError(f"no NIC or VF {quoted(text)} here", hint=hint)
    return device


def _held(found: Inventory, arguments: argparse.Namespace) -> dict[str, str]:
    return vf_uses.held(found, journal=places(arguments).journal, sysfs=arguments.sysfs)
