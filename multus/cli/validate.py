"""`multusctl validate`: reads NetworkAttachmentDefinitions, pods and CNI configurations as the daemon would."""

import argparse
from pathlib import Path
from typing import Any

from multus.cli import output
from multus.cli.objects import Objects, read_objects
from multus.cni.conf import parse_conf, refuse_recursion
from multus.cni.network import OUR_PLUGINS
from multus.cni.request import check_ifname
from multus.errors import MultusError
from multus.files import read_small
from multus.kube.objects import NAD, Pod
from multus.networks.nad import resolve_nad
from multus.networks.selection import Selection, parse_default_network, parse_selections
from multus.settings.netconf import overlaid

_LIMIT = 4 * 1024 * 1024
_CNI_ENDINGS = (".conf", ".conflist", ".json")


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "validate",
        help="check NADs, pods and CNI confs",
        description="Checks files of YAML (pods, NetworkAttachmentDefinitions) and CNI configurations "
        f"({', '.join(_CNI_ENDINGS)}) with the daemon's own parsers. Exit code 1 when something is wrong.",
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--multus-namespace", default="kube-system", help="of default networks (%(default)s)")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Check every file, and say what is wrong with each."""
    wrong = 0
    for path in arguments.files:
        output.heading(str(path))
        try:
            checked = _check_file(path, arguments.multus_namespace)
        except MultusError as error:
            checked = [("", str(error))]
        for what, problem in checked:
            if problem:
                wrong += 1
                output.bad(f"{what}: {problem}" if what else problem)
            else:
                output.good(what)
        if not checked:
            output.note("nothing in it that this project reads")
    return 1 if wrong else 0


def _check_file(path: Path, multus_namespace: str) -> list[tuple[str, str]]:
    """(what, problem or "") of each thing in the file."""
    if path.suffix in _CNI_ENDINGS:
        data = read_small(path, limit=_LIMIT)
        if b'"apiVersion"' not in data:
            return [_try("CNI configuration", _check_conf, data, str(path))]
    objects = read_objects(path)
    checked = [("", problem) for problem in objects.problems]
    for nad in objects.nads:
        checked.append(_try(f"NetworkAttachmentDefinition {nad.namespace}/{nad.name}", _check_nad, nad))
    for pod in objects.pods:
        checked.append(_try(f"Pod {pod.namespace}/{pod.name}", _check_pod, pod, objects, multus_namespace))
    return checked


def _try(what: str, check: Any, *args: object) -> tuple[str, str]:
    try:
        check(*args)
    except MultusError as error:
        return what, str(error)
    return what, ""


def _check_conf(data: bytes, where: str) -> None:
    conf = parse_conf(data, where=where, plugins_elsewhere=True)
    if any(plugin.type in OUR_PLUGINS for plugin in conf.plugins):
        overlaid((), data if not conf.is_list else _own(conf.plugins[0].body), drop_readiness=False)
        return
    refuse_recursion(conf)


def _own(body: Any) -> bytes:
    from multus.cni import document

    return document.encode(body)


def _check_nad(nad: NAD) -> None:
    if nad.config.strip():
        resolve_nad(nad)


def _check_pod(pod: Pod, objects: Objects, multus_namespace: str) -> None:
    """The annotations' grammar; and, where the file brings NADs, that those it names in their namespaces are there."""
    chosen: list[Selection] = list(parse_selections(pod.networks, pod.namespace))
    if pod.default_network.strip():
        parse_default_network(pod.default_network, multus_namespace)
    for selection in chosen:
        if selection.ifname and (problem := check_ifname(selection.ifname)):
            raise MultusError(f"interface name {selection.ifname!r}: {problem}")
    names = {(nad.namespace, nad.name) for nad in objects.nads}
    for selection in chosen:
        missing = (selection.namespace, selection.name) not in names
        if missing and any(namespace == selection.namespace for namespace, _ in names):
            raise MultusError(
                f"it names {selection.namespace}/{selection.name}, which is not in the file",
                hint="it may be in the cluster: multusctl explain looks there",
            )
