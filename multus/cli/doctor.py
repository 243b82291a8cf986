"""`multusctl doctor`: looks at this node and says what to do about whatever is wrong. Changes nothing."""

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import anyio
import msgspec

from multus.cli import output
from multus.errors import MultusError
from multus.settings import DEFAULT_CONFIG, DaemonSettings, load_daemon

if TYPE_CHECKING:
    from multus.cli.examine import Finding

_CONFIGS: Final = (DEFAULT_CONFIG, "/etc/multus/daemon-config.json")  # upstream's place, and that of our DaemonSet
_PRINT: Final = {"ok": output.good, "note": output.note, "wrong": output.bad}


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "doctor", help="say what is wrong on this node, and what to do", description="Exit code 1 if anything is wrong."
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"daemon-config.json (default {DEFAULT_CONFIG})")
    parser.add_argument("--cni-bin-dir", type=Path, default=Path("/opt/cni/bin"), metavar="DIR", help="%(default)s")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Look at everything; a trouble in one place does not hide another."""
    topics = _look(arguments.config, arguments.cni_bin_dir)
    wrong = sum(each.level == "wrong" for findings in topics.values() for each in findings)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(topics), indent=2).decode())
        return 1 if wrong else 0
    for name, findings in topics.items():
        output.heading(name)
        for each in findings:
            _PRINT[each.level](output.printable(each.what))
            if each.advice:
                output.note(f"-> {output.printable(each.advice)}")
    print(f"\n{wrong} thing{'' if wrong == 1 else 's'} wrong" if wrong else "\nnothing is wrong")
    return 1 if wrong else 0


def _look(config: Path | None, bin_dir: Path) -> "dict[str, list[Finding]]":
    from multus.cli import examine, examine_devices

    settings, found = _settings(config)
    return {
        "Settings": found,
        "CNI configuration": _guarded(lambda: examine.configuration(Path(settings.cni_config_dir))),
        "Shim": _guarded(lambda: examine.shim(bin_dir)),
        "Daemon": _guarded(lambda: examine.daemon(settings.socket_path)),
        "State": _guarded(lambda: examine.state(Path(settings.cni_dir))),
        "API server": _guarded(lambda: _api(settings)),
        "Kubelet": _guarded(lambda: examine.kubelet(Path(settings.kubelet_dir), needed=not settings.manifests)),
        "Pools": _guarded(lambda: examine_devices.device_plugins(settings)),
        "Hardware": _guarded(lambda: examine.hardware(Path("/sys"))),
    }


def _settings(given: Path | None) -> "tuple[DaemonSettings, list[Finding]]":
    from multus.cli.examine import Finding

    defaults = DaemonSettings(node_name=os.environ.get("MULTUS_NODE_NAME", ""))
    path = given or next((Path(each) for each in _CONFIGS if Path(each).exists()), None)
    if path is None:
        what = f"neither {_CONFIGS[0]} nor {_CONFIGS[1]} is there: defaults are looked at"
        return defaults, [Finding(level="note", what=what, advice="--config names another")]
    try:
        settings = load_daemon(path, node_name=defaults.node_name)
    except MultusError as error:
        return defaults, [Finding(level="wrong", what=error.message, advice=error.hint)]
    warned = [Finding(level="wrong", what=warning) for warning in settings.warnings]
    return settings, warned or [Finding(what=f"{path} can be used")]


def _guarded(look: "Callable[[], Iterator[Finding]]") -> "list[Finding]":
    """What was found up to the first thing that could not be looked at."""
    from multus.cli.examine import Finding

    found = []
    try:
        for each in look():
            found.append(each)
    except MultusError as error:
        found.append(Finding(level="wrong", what=error.message, advice=error.hint))
    except OSError as error:
        what = f"{error.filename or 'this'} cannot be looked at: {error.strerror or error}"
        found.append(Finding(level="wrong", what=what, advice="run as root"))
    return found


def _api(settings: DaemonSettings) -> "Iterator[Finding]":
    from multus.cli.examine import Finding, api_server

    if settings.manifests:
        yield Finding(level="note", what=f"none: objects are read from {settings.manifests}")
    elif settings.kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST"):
        yield from anyio.run(api_server, settings.kubeconfig, settings.node_name)
    else:
        yield Finding(
            level="note",
            what="not asked: neither kubeconfig nor the environment of a pod names one",
            advice="in the DaemonSet: kubectl -n kube-system exec ds/kube-multus-ds -- multusctl doctor",
        )
