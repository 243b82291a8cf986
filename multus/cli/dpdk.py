"""`multusctl dpdk`: VFs on drivers for programs, who has them open, and hugepages."""

import argparse
import subprocess
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, Final

import anyio
import msgspec

from devices import guard
from devices.errors import DeviceError
from devices.linux.pci import USERSPACE
from devices.linux.sysfs import PciRecord, Sysfs, parse_address
from dpdk import hugepages
from dpdk.drivers import Binder, BindPlan
from dpdk.errors import DpdkError, RefusedError
from dpdk.iommu import read_group
from dpdk.kernel import Kernel
from dpdk.plans import VFIO, Step
from multus.cli import dpdk_pods, output, vf_uses
from multus.errors import from_devices
from multus.journal import Journal
from multus.pod_names import pod_names
from multus.settings import DEFAULT_CNI_DIR

BY_HAND: Final = "by hand"
_HEADER: Final = ("DEVICE", "PF", "DRIVER", "INTERFACE", "GROUP", "NUMA", "USED BY", "REMARK")


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "dpdk", help="bind VFs for DPDK, hugepages, and who has what", description=__doc__
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--cni-dir", type=Path, default=Path(DEFAULT_CNI_DIR), help="the daemon's cniDir (%(default)s)")
    common.add_argument("--sysfs", type=Path, default=Path("/sys"), help="another sysfs, such as a host's (/sys)")
    commands = parser.add_subparsers(dest="dpdk_command", required=True, metavar="COMMAND")

    def command(name: str, run_: Callable[[argparse.Namespace], int], text: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=text, description=text, parents=[common])
        made.set_defaults(run=run, run_dpdk=run_)
        return made

    status = command("status", _status, "every NIC and VF, its driver, and who has it open")
    status.add_argument("--json", action="store_true", help="for programs")
    bind = command("bind", _bind, "give VFs to a driver for programs")
    bind.add_argument("devices", metavar="BDF", nargs="+", help="PCI addresses of VFs")
    bind.add_argument("--driver", default=VFIO, help="vfio-pci or uio_pci_generic (%(default)s)")
    bind.add_argument("--mac", default="", help="the MAC of its DPDK port (default: the one that it has)")
    bind.add_argument("--dry-run", action="store_true", help="say what would be done, and do nothing")
    unbind = command("unbind", _unbind, "put VFs back as they were")
    unbind.add_argument("devices", metavar="BDF", nargs="+", help="PCI addresses of VFs")
    unbind.add_argument(
        "--wait", type=float, default=0.0, metavar="SECONDS", help="for programs to let go (%(default)s)"
    )
    unbind.add_argument("--driver", default="", help="where a VF goes that was not bound by multus")
    pages = command("hugepages", _hugepages, "show hugepages by NUMA node, or set how many there are")
    pages.add_argument("--node", type=int, help="the NUMA node (default: all that have the size, each)")
    pages.add_argument("--size", default="2M", help="the page size (%(default)s)")
    pages.add_argument("--count", type=int, help="how many pages")
    pages.add_argument("--mount", type=Path, metavar="DIRECTORY", help="mount a hugetlbfs of that size there")
    dpdk_pods.options(command)


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    with from_devices():
        return int(arguments.run_dpdk(arguments))


def _status(arguments: argparse.Namespace) -> int:
    kernel, journal = _kernel(arguments), arguments.cni_dir / "journal.db"
    records = kernel.sysfs.read()
    reasons = guard.devices(records, guard.read()) if arguments.sysfs == Path("/sys") else {}
    pods = vf_uses.attached(journal)
    found = [_look(kernel, record, reasons.get(record.bdf, ""), pods.get(record.bdf, "")) for record in records]
    pages = hugepages.read_pages(arguments.sysfs)
    if arguments.json:
        document = {"devices": found, "hugepages": pages, "mounts": hugepages.read_mounts()}
        print(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())
        return 0
    output.table(_HEADER, [_row(each) for each in found])
    output.heading("hugepages")
    _show_pages(pages)
    return 0


def _look(kernel: Kernel, record: PciRecord, reason: str, pod: str) -> dict[str, Any]:
    group = read_group(kernel.sysfs, record.bdf)
    blockers = group.blockers({record.bdf}) if group is not None else ()
    holders = kernel.holders(record.bdf) if record.driver in USERSPACE or record.rdma else ()
    remark = f"the node needs it: {reason}" if reason else ""
    if not remark and record.physfn and group is None:
        remark = "no IOMMU"
    elif not remark and record.physfn and blockers:
        remark = f"group not viable: {', '.join(each.bdf for each in blockers)}"
    return {
        "pci": record.bdf,
        "pf": record.physfn or "",
        "vf": record.vf_index,
        "driver": record.driver,
        "override": record.driver_override,
        "interface": record.netdev.name if record.netdev else "",
        "group": group.number if group else "",
        "numa": record.numa_node,
        "pod": pod,
        "holders": [msgspec.to_builtins(each) | {"words": str(each)} for each in holders],
        "remark": remark,
    }


def _row(found: Mapping[str, Any]) -> tuple[str, ...]:
    users = [found["pod"]] if found["pod"] else []
    users += [each["words"] for each in found["holders"]]
    numa = str(found["numa"]) if found["numa"] >= 0 else "-"
    pf = f"{found['pf']} vf {found['vf']}" if found["pf"] else "-"
    values = (found["pci"], pf, found["driver"], found["interface"], found["group"], numa, ", ".join(users))
    return tuple(value or "-" for value in (*values, found["remark"]))


def _bind(arguments: argparse.Namespace) -> int:
    addresses = _addresses(arguments)
    if arguments.mac and len(addresses) > 1:
        raise DpdkError("one MAC for several VFs", hint="bind them one by one")
    pods = vf_uses.attached(arguments.cni_dir / "journal.db")
    wanted = [bdf for bdf in addresses if bdf not in pods]
    plans: dict[str, BindPlan] = {}
    planning = anyio.Lock()

    async def one(binder: Binder, bdf: str) -> str:
        if bdf in pods:
            raise DpdkError(f"{bdf} is in use by {pods[bdf]}", hint="delete the pod first")
        async with planning:
            if not plans:
                made = await binder.plan_all(wanted, arguments.driver, mac=arguments.mac, owner=BY_HAND)
                plans.update((plan.bdf, plan) for plan in made)
        plan = plans[bdf]
        if arguments.dry_run:
            if plan.refusals:
                raise RefusedError(bdf, arguments.driver, plan.refusals)
            return f"{bdf}: would {', '.join(plan.steps) or 'do nothing'}"
        await binder.apply_bind(plan)
        notes = f" ({'; '.join(plan.notes)})" if plan.notes else ""
        return f"{bdf} is on {arguments.driver}{notes}" if Step.PROBE in plan.steps else f"{bdf}:{notes or ' done'}"

    return _each(arguments, addresses, one)


def _unbind(arguments: argparse.Namespace) -> int:
    pods = vf_uses.attached(arguments.cni_dir / "journal.db")

    async def one(binder: Binder, bdf: str) -> str:
        if bdf in pods:
            raise DpdkError(f"{bdf} is in use by {pods[bdf]}", hint="it is put back when the pod ends, or by hand then")
        if arguments.driver:
            await binder.adopt(bdf, arguments.driver, owner=BY_HAND)
        record = await binder.restore(bdf, hold=arguments.wait)
        if record is None:
            hint = "--driver names the driver that it shall go to"
            raise DpdkError(f"{bdf} was not bound by multus: what it was before is not known", hint=hint)
        return f"{bdf} is on {record.driver or 'no driver'} again"

    return _each(arguments, _addresses(arguments), one)


def _each(arguments: argparse.Namespace, addresses: list[str], work: Callable[[Binder, str], Awaitable[str]]) -> int:
    """All VFs at a time; each says how it went."""
    said: dict[str, tuple[bool, str]] = {}

    async def one(binder: Binder, bdf: str) -> None:
        try:
            said[bdf] = True, await work(binder, bdf)
        except DeviceError as error:
            said[bdf] = False, str(error)

    directory: Path = arguments.cni_dir
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)

    async def every() -> None:
        async with Journal.open(directory / "journal.db") as journal:
            binder = Binder(_kernel(arguments), journal.records)
            async with anyio.create_task_group() as group:
                for bdf in addresses:
                    group.start_soon(one, binder, bdf)

    vf_uses.change(every)
    for bdf in addresses:
        well, words = said[bdf]
        (output.good if well else output.bad)(output.printable(words))
    return 0 if all(well for well, _ in said.values()) else 1


def _hugepages(arguments: argparse.Namespace) -> int:
    size = hugepages.parse_size(arguments.size)
    if arguments.count is not None:
        if arguments.count < 0:
            raise DpdkError(f"{arguments.count} hugepages", hint="--count is 0 or more")
        there = [pages.node for pages in hugepages.read_pages(arguments.sysfs) if pages.size_kb == size]
        for node in [arguments.node] if arguments.node is not None else there or [0]:
            hugepages.set_pages(node, size, arguments.count, sysfs=arguments.sysfs)
    if arguments.mount is not None:
        _mount(arguments.mount, size)
    pages = hugepages.read_pages(arguments.sysfs)
    _show_pages([each for each in pages if arguments.node in (None, each.node)])
    return 0


def _show_pages(pages: Any) -> None:
    rows = [
        (str(each.node), hugepages.size_text(each.size_kb), str(each.total), str(each.free), str(each.surplus))
        for each in pages
    ]
    if rows:
        output.table(("NODE", "SIZE", "PAGES", "FREE", "SURPLUS"), rows)
    else:
        output.note("this kernel has none")
    for mount in hugepages.read_mounts():
        output.note(output.printable(f"{mount.path} is mounted, pages of {hugepages.size_text(mount.size_kb)}"))


def _mount(directory: Path, size_kb: int) -> None:
    if _is_mounted(directory, size_kb):
        return
    if not directory.is_dir():
        raise DpdkError(f"{directory} is not a directory", hint="make it first")
    option = f"pagesize={hugepages.size_text(size_kb)}"
    command = ["mount", "-t", "hugetlbfs", "-o", option, "nodev", str(directory)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=20)
    if done.returncode:
        raise DpdkError(f"cannot mount a hugetlbfs at {directory}: {done.stderr.strip()}", hint="root is needed")
    if not _is_mounted(directory, size_kb):
        raise DpdkError(f"mount said that it was done, and no hugetlbfs is at {directory}", hint="see dmesg")


def _is_mounted(directory: Path, size_kb: int) -> bool:
    where = str(directory.resolve())
    return any(mount.path == where and mount.size_kb == size_kb for mount in hugepages.read_mounts())


def _addresses(arguments: argparse.Namespace) -> list[str]:
    return list(dict.fromkeys(parse_address(text) for text in arguments.devices))


def _kernel(arguments: argparse.Namespace) -> Kernel:
    return Kernel(Sysfs(arguments.sysfs), pod_name=pod_names(arguments.cni_dir / "journal.db"))
