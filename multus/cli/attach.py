"""`multusctl attach` and `detach`: a pod's networks by hand, as a container runtime would ask for them.

Works against any multusd. Under one with `manifests`, the pod (and the NADs beside it in the file) is put into that
folder first, as kubectl apply would into a cluster; under one with an API server the pod has to be there.
With --timeline they ask the daemon where the time went.
"""

import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from devices.linux import netns
from multus.cli import output, runtime, timeline
from multus.cli.objects import read_objects
from multus.files import remove, replace
from multus.kube.objects import Pod
from multus.settings import DaemonSettings, SettingsError, load_daemon
from multus.settings.daemon import parse_daemon
from multus.timeline import Timeline


def add_parser(subparsers: Any) -> None:
    """The two subcommands' arguments."""
    for name, run, what in (
        ("attach", run_attach, "give a pod its networks, as a container runtime would"),
        ("detach", run_detach, "take a pod's networks down again"),
    ):
        parser: argparse.ArgumentParser = subparsers.add_parser(name, help=what, description=what)
        parser.add_argument(
            "-f", "--file", type=Path, required=True, metavar="POD.yaml", help="the pod, perhaps with NADs"
        )
        parser.add_argument(
            "--config", type=Path, help="the daemon's file (its socket, folder and conf are found by it)"
        )
        parser.add_argument("--conf", type=Path, help="the CNI conf to use (the first in the daemon's cniConfigDir)")
        parser.add_argument("--netns", default="", help="a network namespace's path (one is made in /run/netns)")
        parser.add_argument("--ifname", default="eth0", help="CNI_IFNAME (%(default)s)")
        parser.add_argument("--shim", type=Path, default=runtime.default_shim(), help="the plugin binary (%(default)s)")
        parser.add_argument("--json", action="store_true", help="print the CNI result only")
        parser.add_argument("--timeline", action="store_true", help="show where the time went, phase by phase")
        parser.set_defaults(run=run)


def run_attach(arguments: argparse.Namespace) -> int:
    """Attach every pod of the file."""
    settings = _settings(arguments.config)
    for pod in _pods(arguments.file):
        _apply(arguments.file, pod, settings)
        path = arguments.netns or netns.create(_name(pod))
        try:
            done = _call("ADD", arguments, settings, pod, path)
        except BaseException:
            if not arguments.netns:
                netns.delete(_name(pod))
            raise
        if arguments.json:
            body = done.result
            if arguments.timeline:
                body = {"result": body, "timeline": msgspec.to_builtins(_timeline("ADD", arguments, settings, pod))}
            print(json.dumps(body, indent=2))
            continue
        output.heading(f"{pod.namespace}/{pod.name}")
        output.good(f"attached; network namespace {path}", done.seconds)
        shown = subprocess.run(
            ["nsenter", f"--net={path}", "ip", "-brief", "address"], capture_output=True, text=True, check=False
        )
        print(shown.stdout, end="")
        if arguments.timeline:
            timeline.show(_timeline("ADD", arguments, settings, pod), whole=done.seconds)
    return 0


def run_detach(arguments: argparse.Namespace) -> int:
    """Detach every pod of the file."""
    settings = _settings(arguments.config)
    for pod in _pods(arguments.file):
        path = arguments.netns or f"/run/netns/{_name(pod)}"
        done = _call("DEL", arguments, settings, pod, path)
        if not arguments.netns:
            netns.delete(_name(pod))
        if settings.manifests:
            remove(_target(pod, settings))
        if arguments.json:
            if arguments.timeline:
                print(json.dumps({"timeline": msgspec.to_builtins(_timeline("DEL", arguments, settings, pod))}))
            continue
        output.heading(f"{pod.namespace}/{pod.name}")
        output.good("detached", done.seconds)
        if arguments.timeline:
            timeline.show(_timeline("DEL", arguments, settings, pod), whole=done.seconds)
    return 0


def _settings(path: Path | None) -> DaemonSettings:
    """The daemon's settings, or its defaults when no file is named."""
    return load_daemon(path) if path is not None else parse_daemon(b"{}", where="defaults")


def _pods(path: Path) -> tuple[Pod, ...]:
    pods = read_objects(path).pods
    if not pods:
        raise SettingsError(f"there is no Pod in {path}", hint="give a file with a v1 Pod")
    return pods


def _apply(path: Path, pod: Pod, settings: DaemonSettings) -> None:
    if settings.manifests:
        replace(_target(pod, settings), path.read_bytes(), mode=0o644)


def _target(pod: Pod, settings: DaemonSettings) -> Path:
    return Path(settings.manifests) / f"multusctl-{pod.namespace}-{pod.name}.yaml"


def _name(pod: Pod) -> str:
    return runtime.container_id(pod)


def _timeline(command: str, arguments: argparse.Namespace, settings: DaemonSettings, pod: Pod) -> Timeline:
    return timeline.fetch(Path(settings.socket_path), command, _name(pod), arguments.ifname)


def _call(
    command: str, arguments: argparse.Namespace, settings: DaemonSettings, pod: Pod, path: str
) -> runtime.Outcome:
    if arguments.conf is not None:
        conf = runtime.runtime_conf(arguments.conf.read_bytes(), where=str(arguments.conf))
    else:
        conf, _ = runtime.conf_in_force(Path(settings.cni_config_dir))
    return runtime.call(command, shim=arguments.shim, conf=conf, pod=pod, netns=path, ifname=arguments.ifname)
