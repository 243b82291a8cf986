"""`multusctl dpdk eal` and `check`: the command line of a pod's DPDK program, and what its container lacks for it."""

import argparse
import shlex
from pathlib import Path
from typing import Any, Final

from devices import portfiles
from devices.kubelet.allocate import PORTS
from devices.linux.sysfs import Sysfs
from dpdk.containers import read_container, walk_pod
from dpdk.eal import Wanted
from dpdk.errors import DpdkError
from dpdk.iommu import group_node, read_group
from dpdk.portmap import MAP_LIMIT, PortMap, arguments, decode_map
from dpdk.readiness import readiness
from multus.cli import output
from multus.devinfo import DIRECTORY
from multus.files import read_small

OWN_CPUS: Final = "\"$(sed -n 's/^Cpus_allowed_list:[[:space:]]*//p' /proc/self/status)\""
"""Shell that puts in the CPUs of the container that it runs in."""


def add_map_arguments(parser: argparse.ArgumentParser) -> None:
    """Whose ports they are."""
    parser.add_argument("pod", metavar="NAMESPACE/POD", nargs="?", default="", help="a pod on this node")
    parser.add_argument("--map", type=Path, metavar="FILE", help=f"its map (in the pod: {PORTS}/*/{portfiles.MAP})")
    parser.add_argument("--info", type=Path, default=DIRECTORY, help="the daemon's deviceInfoDir (%(default)s)")


def add_eal_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line is made from."""
    add_map_arguments(parser)
    parser.add_argument("--pid", default="", help="put in the CPUs of this process; 'self' for this one")
    parser.add_argument("--app", default="dpdk-testpmd", help="the program (%(default)s)")
    parser.add_argument("--file-prefix", default="", help="for secondary processes; needs a mounted hugetlbfs")
    parser.add_argument("--args", default="", metavar="'...'", help="its own arguments, as --args='-i --nb-cores=1'")


def add_check_arguments(parser: argparse.ArgumentParser) -> None:
    """What is checked."""
    add_map_arguments(parser)
    parser.add_argument("--pid", default="", help="a process in the container (the pod's, or this one)")
    parser.add_argument("--device", action="append", default=[], metavar="PATH", help="a node that it should have")
    parser.add_argument("--memory", type=int, default=0, metavar="MiB", help="hugepage memory that is wanted")


def eal(chosen: argparse.Namespace) -> int:
    """Print a command line for a shell; without a process, for one in the container."""
    found = read_map(chosen)
    if found is None:
        raise DpdkError("whose command line?", hint="name the pod as NAMESPACE/POD, or its map with --map")
    try:
        own = shlex.split(chosen.args)
    except ValueError as error:
        raise DpdkError(f"--args: {error}", hint="write them as for a shell") from None
    cpus = read_container(chosen.pid, sysfs=chosen.sysfs).cpus if chosen.pid else ()
    words = [chosen.app, *arguments(found, cpus=cpus, file_prefix=chosen.file_prefix)]
    line = [shlex.quote(word) for word in words]
    if not cpus:
        line[1:1] = ["-l", OWN_CPUS]
    if own:
        line += ["--", *map(shlex.quote, own)]
    print(" ".join(line))
    return 0


def check(chosen: argparse.Namespace) -> int:
    """Say what is missing in a container."""
    found = read_map(chosen)
    process = chosen.pid
    if not process and found is not None and not chosen.map and found.uid:
        process = str(walk_pod(found.uid, marked=PORTS))
    nodes = _nodes(found, Sysfs(chosen.sysfs)) if found is not None else set()
    container = read_container(process or "self", devices={*chosen.device, *nodes}, sysfs=chosen.sysfs)
    memory = dict(found.memory_mb) if found is not None else {}
    if chosen.memory:
        ports = found.ports if found is not None else ()
        local = next((port.numa for port in ports if port.numa >= 0), None)
        near = next((container.cpu_nodes[cpu] for cpu in container.cpus if cpu in container.cpu_nodes), 0)
        memory = {near if local is None else local: chosen.memory}
    ports = found.ports if found is not None else ()
    missing = readiness(container, Wanted(cpus=container.cpus, ports=ports, memory_mb=memory))
    for each in missing:
        (output.bad if each.fatal else output.note)(output.printable(each.what))
        output.note(output.printable(each.hint))
    if not missing:
        output.good("DPDK has all that it needs")
    return 1 if any(each.fatal for each in missing) else 0


def read_map(chosen: argparse.Namespace) -> PortMap | None:
    """The map of the pod or the file that was named; None when neither was.

    :raises DpdkError: there is none, or it is damaged. :raises FileError: it cannot be read.
    """
    if chosen.map is not None:
        return decode_map(read_small(chosen.map, limit=MAP_LIMIT), where=str(chosen.map))
    if not chosen.pod:
        return None
    for path in sorted((chosen.info / portfiles.FOLDER).glob(f"*/{portfiles.MAP}")):
        try:
            found = decode_map(read_small(path, limit=MAP_LIMIT), where=str(path))
        except DpdkError as error:
            output.note(output.printable(str(error)))
            continue
        if found.pod == chosen.pod:
            return found
    raise DpdkError(
        f"{chosen.pod[:300]!a} has no DPDK ports on this node",
        hint=f"maps are in {chosen.info / portfiles.FOLDER}; `multusctl attachments` shows what pods have",
    )


def _nodes(found: PortMap, sysfs: Sysfs) -> set[str]:
    """The device nodes that the ports need in the container."""
    nodes: set[str] = set()
    for port in found.ports:
        group = read_group(sysfs, port.pci) if port.driver == "vfio-pci" else None
        if group is not None:
            number = group_node(sysfs, group).name.removeprefix("noiommu-")
            nodes |= {"/dev/vfio/vfio", f"/dev/vfio/{number}"}
    return nodes


def options(add: Any) -> None:
    """Both commands, by `add(name, run, text)`, which gives their parsers."""
    add_eal_arguments(add("eal", eal, "print the command line of a pod's DPDK program"))
    add_check_arguments(add("check", check, "say what a container lacks for DPDK"))
