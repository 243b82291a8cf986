"""`multusctl vf`: virtual functions by hand. What would cut the node off, or take a VF from who uses it, is refused."""

import argparse
from pathlib import Path
from typing import Any, Final

import msgspec

from devices import guard, inventory, policy, pools
from devices.config import nearest, quoted
from devices.errors import DeviceError
from devices.inventory import PF, VF, Inventory
from devices.kubelet.allocate import Device, preferred
from devices.linux.sysfs import AddressError, Sysfs, parse_address
from devices.policy import Plan, describe
from devices.pool_config import PoolConfig
from multus import uses
from multus.cli import devices, hardware, output, vf_policies, vf_uses
from multus.cli.vf_uses import BY_HAND, VfError, attached, record, refuse_beside_daemon, unrecord
from multus.errors import from_devices
from multus.files import read_small
from multus.settings import DEFAULT_CNI_DIR, DEFAULT_SOCKET_DIR

_MAX_CONFIG: Final = 4 << 20  # bytes


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "vf", help="create, show, allocate and release virtual functions", description="Virtual functions by hand."
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cni-dir", type=Path, default=Path(DEFAULT_CNI_DIR), help="the daemon's cniDir (%(default)s)")
    common.add_argument("--config", type=Path, default=devices.DEFAULT_CONFIG, help="the pools (%(default)s)")
    common.add_argument("--sysfs", type=Path, default=hardware.SYSFS, help="another sysfs, such as a host's (/sys)")
    change = argparse.ArgumentParser(add_help=False, parents=[common])
    change.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    change.add_argument("--socket-dir", type=Path, default=Path(DEFAULT_SOCKET_DIR), help="of the daemon (%(default)s)")
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
    shown_addresses = {vf.bdf for vf in view.inventory.vfs} | {pf.bdf for pf in view.inventory.pfs}
    for bdf, owner in sorted(vf_uses.allocated(arguments.cni_dir / "journal.db").items()):
        if bdf in shown_addresses:
            output.note(output.printable(f"{bdf} is allocated: {owner}"))
    return 0


def _create(arguments: argparse.Namespace) -> int:
    sysfs = Sysfs(arguments.sysfs)
    found = _look(sysfs)
    pf = _find(found, arguments.device)
    if isinstance(pf, VF):
        raise VfError(f"{pf.bdf} is a VF itself", hint=f"its PF is {pf.pf_netdev or pf.pf}")
    plan = policy.plan_numvfs(found, pf, arguments.count, _held(found, arguments))
    if plan.refusals:
        refusal = plan.refusals[0]
        raise VfError(f"{refusal.what}: {refusal.reason}", hint=refusal.hint)
    if arguments.dry_run or not plan.steps:
        for line in describe(plan, found):
            print(output.printable(line))
        return 0
    for note in plan.notes:
        output.note(output.printable(note))
    _apply(sysfs, pf, plan)
    now = _find(_look(sysfs), pf.bdf)
    made = now.vfs if isinstance(now, PF) else ()
    output.good(f"{pf.netdev or pf.bdf} has {arguments.count} VFs")
    for vf in made:
        output.note(output.printable(f"{vf.index}  {vf.bdf}  {vf.netdev or '-'}  {vf.driver or 'no driver'}"))
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    found = _look(Sysfs(arguments.sysfs))
    return vf_policies.show(arguments, found, _held(found, arguments))


def _apply(sysfs: Sysfs, pf: PF, plan: Plan) -> None:
    """Make the steps. When the kernel removes the VFs but then refuses the new number, the old one is made again."""
    done = 0
    try:
        for step in plan.steps:
            sysfs.set_numvfs(step.bdf, step.number)
            done += 1
        record = sysfs.read_one(pf.bdf)
        if record is None or record.num_vfs != plan.steps[-1].number:
            raise VfError(
                f"{pf.netdev or pf.bdf} has {record.num_vfs if record else 'no'} VFs after it was told "
                f"{plan.steps[-1].number}",
                hint="does another program manage it? the kernel's log may say more",
            )
    except DeviceError as error:
        if not done:
            raise
        try:
            sysfs.set_numvfs(pf.bdf, pf.num_vfs)
        except DeviceError as second:
            raise VfError(f"{error.message}; nor can its {pf.num_vfs} VFs be made again: {second.message}") from error
        raise VfError(f"{error.message}; its {pf.num_vfs} VFs were made again", hint=error.hint) from error


def _allocate(arguments: argparse.Namespace) -> int:
    if arguments.count < 1:
        raise VfError(f"{arguments.count} VFs cannot be allocated", hint="--count is at least 1")
    config = _config(arguments.config)
    pool = config.pool(_full_name(config, arguments.pool))
    found = _look(Sysfs(arguments.sysfs))
    held = _held(found, arguments)
    members = pools.assign(found, config).members.get(pool.resource, ())
    usable = {
        each.device.bdf: Device(
            id=each.device.bdf,
            numa=-1 if pool.exclude_topology else each.device.numa,
            parent=each.device.pf if isinstance(each.device, VF) else each.device.bdf,
        )
        for each in members
        if each.healthy and each.device.bdf not in held
    }
    if len(usable) < arguments.count:
        broken = [f"{each.device.bdf}: {each.reason}" for each in members if each.reason]
        used = [f"{each.device.bdf} has {held[each.device.bdf]}" for each in members if each.device.bdf in held]
        raise VfError(
            f"{pool.resource} has {len(usable)} of {len(members)} devices free, not {arguments.count}",
            hint="; ".join([*used, *broken][:8]),
        )
    chosen = preferred(usable, set(usable), [], arguments.count, preference=pool.preferred)
    if arguments.dry_run:
        print(output.printable(f"would allocate {', '.join(chosen)} of {pool.resource} to {arguments.owner}"))
        return 0
    refuse_beside_daemon(arguments.socket_dir)
    vf_uses.change(record, arguments.cni_dir, f"{BY_HAND}{arguments.owner}", pool.resource, chosen)
    for bdf in chosen:
        print(bdf)
    return 0


def _release(arguments: argparse.Namespace) -> int:
    bdf = _address(arguments)
    journal = arguments.cni_dir / "journal.db"
    if pod := attached(journal).get(bdf):
        raise VfError(f"{bdf} is in use by {pod}", hint="it is given back when the pod ends")
    owner = vf_uses.allocated(journal).get(bdf)
    if owner is None:
        raise VfError(f"{bdf} is not allocated", hint="`multusctl vf show` says what is")
    if not owner.startswith(BY_HAND):
        raise VfError(f"{bdf} was given by the daemon: {owner}", hint="it is given back when the pod ends")
    holder = next(iter(uses.programs(bdf, arguments.sysfs)), "")
    if holder:
        raise VfError(f"{bdf} is in use by {holder}", hint="end it first")
    if arguments.dry_run:
        print(output.printable(f"would release {bdf}, allocated {owner}"))
        return 0
    refuse_beside_daemon(arguments.socket_dir)
    vf_uses.change(unrecord, arguments.cni_dir, bdf)
    output.good(f"{bdf} is free")
    return 0


def _look(sysfs: Sysfs) -> Inventory:
    """The inventory with what the node needs. When that cannot be told, DeviceError: then nothing must be changed."""
    records = sysfs.read()
    return inventory.build(records, guarded=guard.devices(records, guard.read()))


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


def _address(arguments: argparse.Namespace) -> str:
    """What to release may be gone from the hardware: its address is enough then."""
    try:
        return parse_address(arguments.device)
    except AddressError:
        return _find(_look(Sysfs(arguments.sysfs)), arguments.device).bdf


def _config(path: Path) -> PoolConfig:
    config = pools.parse_config(read_small(path, limit=_MAX_CONFIG), where=str(path))
    for warning in config.warnings:
        output.note(output.printable(warning))
    return config


def _full_name(config: PoolConfig, name: str) -> str:
    found = [pool.resource for pool in config.pools if name in (pool.resource, pool.name)]
    if len(found) > 1 and name not in found:
        raise VfError(f"several pools are called {name}", hint=f"one of {', '.join(found)}")
    return found[0] if len(found) == 1 else name


def _held(found: Inventory, arguments: argparse.Namespace) -> dict[str, str]:
    return vf_uses.held(found, journal=arguments.cni_dir / "journal.db", sysfs=arguments.sysfs)
