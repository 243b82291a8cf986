"""`multusctl explain`: the plan for a pod, every network, exact conf and refusal, without touching anything."""

import argparse
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc
import msgspec

from multus import confdir
from multus.assignments import Assignments, KubeletAssignments
from multus.cli import output, runtime
from multus.cli.explain_devices import Preview
from multus.cli.objects import Objects, read_folder, read_objects
from multus.cli.places import CONFIGS, of_settings
from multus.cni.request import Command, Request
from multus.errors import MultusError, from_devices
from multus.kube.cluster import Cluster, EventKind, NoCluster
from multus.kube.errors import NotFoundError, missing_nad
from multus.kube.objects import NAD, Pod
from multus.networks.gateways import GatewayDecision
from multus.plan import Plan, Planned
from multus.resolve import Resolver
from multus.settings import DaemonSettings, load_daemon, net_conf, parse_daemon


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "explain", help="the plan for a pod, without touching anything", description=__doc__
    )
    parser.add_argument("pod", nargs="?", default="", metavar="NAMESPACE/NAME", help="a pod of the daemon's cluster")
    parser.add_argument("-f", "--file", type=Path, help="a pod, perhaps with NADs, from YAML")
    parser.add_argument("--config", type=Path, help="the daemon's file, if it is elsewhere")
    parser.add_argument("--conf", type=Path, help="the CNI conf to use (the first in the daemon's cniConfigDir)")
    parser.add_argument("--ifname", default="eth0", help="CNI_IFNAME (%(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the plan. Exit code 1 when anything in it is refused."""
    if bool(arguments.pod) == bool(arguments.file):
        raise MultusError("one pod, please", hint="NAMESPACE/NAME of the cluster, or -f FILE")
    with from_devices():
        plans = anyio.run(_plans, arguments)
    if arguments.json:
        body = [_record(pod, plan) for pod, plan in plans]
        print(msgspec.json.format(msgspec.json.encode(body), indent=2).decode())
    else:
        for pod, plan in plans:
            _show(pod, plan)
    return 1 if any(plan.refusals for _, plan in plans) else 0


async def _plans(arguments: argparse.Namespace) -> list[tuple[Pod, Plan]]:
    file = arguments.config or next((path for path in CONFIGS if path.exists()), None)
    settings = load_daemon(file) if file else parse_daemon(b"{}", where="defaults")
    if arguments.conf is not None:
        data = runtime.runtime_conf(arguments.conf.read_bytes(), where=str(arguments.conf))
    else:
        data, _ = runtime.conf_in_force(Path(settings.cni_config_dir))
    net = net_conf(settings, data)
    given = read_objects(arguments.file) if arguments.file else Objects()
    async with _cluster(settings) as (behind, assignments):
        resolver = Resolver(
            cluster=_Overlaid(given, behind),
            assignments=assignments,
            files=confdir.Files(),
            sequential=lambda: settings.attach_order == "sequential",
            device_info_dir=settings.device_info_dir,
        )
        found = []
        for namespace, name in _asked(arguments.pod, given):
            pairs = (("IgnoreUnknown", "1"), ("K8S_POD_NAMESPACE", namespace), ("K8S_POD_NAME", name))
            request = Request(
                command=Command.ADD, container_id="explain", ifname=arguments.ifname, args=pairs, conf=data
            )
            pod, plan = await resolver.plan(request, net)
            if isinstance(assignments, Preview):
                plan = msgspec.structs.replace(plan, refusals=(*plan.refusals, *assignments.told()))
            found.append((pod, plan))
        return found


def _asked(text: str, given: Objects) -> list[tuple[str, str]]:
    if not text:
        if not given.pods:
            raise MultusError("there is no Pod in the file")
        return [(pod.namespace, pod.name) for pod in given.pods]
    namespace, slash, name = text.partition("/")
    return [(namespace, name) if slash else ("default", text)]


class _Overlaid:
    """The objects of a file over a cluster, read only."""

    is_current = False

    def __init__(self, given: Objects, behind: Cluster) -> None:
        self._pods = {(pod.namespace, pod.name): pod for pod in given.pods}
        self._nads = {(nad.namespace, nad.name): nad for nad in given.nads}
        self._behind = behind

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        return self._pods.get((namespace, name)) or await self._behind.pod(namespace, name, uid=uid)

    async def nad(self, namespace: str, name: str) -> NAD:
        return self._nads.get((namespace, name)) or await self._behind.nad(namespace, name)

    async def set_network_status(self, pod: Pod, status: str) -> None:
        raise AssertionError("explain changes nothing")

    async def event(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        raise AssertionError("explain changes nothing")

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        task_status.started()


class _Folder(_Overlaid):
    """The objects of a folder, read once."""

    def __init__(self, objects: Objects) -> None:
        super().__init__(objects, NoCluster())

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        if (namespace, name) not in self._pods:
            raise NotFoundError(f"there is no pod {namespace}/{name} in the folder of manifests")
        return self._pods[namespace, name]

    async def nad(self, namespace: str, name: str) -> NAD:
        if (namespace, name) not in self._nads:
            raise missing_nad(namespace, name)
        return self._nads[namespace, name]


@asynccontextmanager
async def _cluster(settings: DaemonSettings) -> AsyncIterator[tuple[Cluster, Assignments]]:
    """What the daemon would ask, asked without watching anything."""
    if settings.manifests:
        yield _Folder(read_folder(Path(settings.manifests))), Preview(of_settings(settings))
    elif settings.kubeconfig:
        from multus.kube.api import Api
        from multus.kube.live import LiveCluster

        async with Api.open(settings.kubeconfig) as api:
            live = LiveCluster(api, settings.node_name or "explain")
            yield live, KubeletAssignments(Path(settings.kubelet_dir), live)
    else:
        yield NoCluster(), KubeletAssignments(Path(settings.kubelet_dir), None)


def _record(pod: Pod, plan: Plan) -> dict[str, object]:
    return {
        "pod": f"{pod.namespace}/{pod.name}",
        "refusals": plan.refusals,
        "attachments": [
            {
                "position": item.attachment.position,
                "interface": item.attachment.ifname,
                "network": item.attachment.network,
                "origin": str(item.origin),
                "found": item.found,
                "after": item.attachment.after,
                "deviceID": item.attachment.device_id,
                "resource": item.attachment.resource,
                "args": dict(item.attachment.args),
                "runtimeConfig": item.attachment.runtime,
                "conf": msgspec.Raw(item.attachment.conf),
                "defaultRoutes": item.gateways,
            }
            for item in plan.attachments
        ],
    }


def _show(pod: Pod, plan: Plan) -> None:
    output.heading(f"Pod {pod.namespace}/{pod.name}")
    for item in plan.attachments:
        _show_one(item, plan)
    for refusal in plan.refusals:
        output.bad(refusal)


def _show_one(item: Planned, plan: Plan) -> None:
    attachment = item.attachment
    types = " + ".join(plugin.type for plugin in item.conf.plugins)
    print(f"\n  {output.paint(attachment.ifname, 'cyan')}  {attachment.network}  ({types})")
    by_position = {each.attachment.position: each.attachment.ifname for each in plan.attachments}
    facts = {
        "asked for by": str(item.origin),
        "found in": item.found,
        "starts after": ", ".join(by_position.get(each, "?") for each in attachment.after) or "nothing: it is first",
        "device": f"{attachment.device_id} of {attachment.resource}" if attachment.resource else "",
        "runtimeConfig": json.dumps(msgspec.to_builtins(attachment.runtime)) if attachment.runtime else "",
        "CNI_ARGS": ";".join(f"{key}={value}" for key, value in attachment.args),
        "default routes": "" if item.gateways == GatewayDecision() else str(item.gateways),
    }
    for what, text in facts.items():
        if text:
            print(f"    {what + ':':<15} {output.printable(text)}")
    for line in msgspec.json.format(attachment.conf, indent=2).decode().splitlines():
        output.note(line)
