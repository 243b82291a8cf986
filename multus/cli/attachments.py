"""`multusctl attachments`: what this node holds, from the journal; the daemon need not run."""

import argparse
from pathlib import Path
from typing import Any

import msgspec

from multus.cli import output
from multus.cni.result import parse_result
from multus.journal import read_journal
from multus.sandbox import Attachment, Sandbox
from multus.settings import DEFAULT_CNI_DIR

_HEADER = ("POD", "INTERFACE", "NETWORK", "ADDRESSES", "MAC", "DEVICE", "STATE", "CONTAINER")


def add_parser(subparsers: Any) -> None:
    """The subcommand's arguments."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "attachments", help="list what this node holds", description="Every network of every pod on this node."
    )
    parser.add_argument("--cni-dir", type=Path, default=Path(DEFAULT_CNI_DIR), help="the daemon's cniDir (%(default)s)")
    parser.add_argument("--json", action="store_true", help="for programs")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Print the list."""
    sandboxes = read_journal(arguments.cni_dir / "journal.db")
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode([_record(each) for each in sandboxes]), indent=2).decode())
        return 0
    rows = [_row(sandbox, item) for sandbox in sandboxes for item in sandbox.attachments]
    if not rows:
        print("no attachments")
        return 0
    output.table(_HEADER, rows)
    return 0


def _row(sandbox: Sandbox, item: Attachment) -> tuple[str, ...]:
    addresses, mac = _seen(item)
    return (
        f"{sandbox.pod_namespace}/{sandbox.pod_name}",
        item.ifname,
        item.network,
        ",".join(addresses) or "-",
        mac or "-",
        item.device_id or "-",
        f"{sandbox.state}{' (retried)' if sandbox.failures else ''}",
        sandbox.container_id[:20],
    )


def _record(sandbox: Sandbox) -> dict[str, object]:
    return {
        "pod": {"namespace": sandbox.pod_namespace, "name": sandbox.pod_name, "uid": sandbox.pod_uid},
        "containerID": sandbox.container_id,
        "netns": sandbox.netns,
        "state": str(sandbox.state),
        "failures": sandbox.failures,
        "created": sandbox.created,
        "attachments": [
            {
                "interface": item.ifname,
                "network": item.network,
                "default": item.default,
                "hotplug": item.hotplug,
                "ips": _seen(item)[0],
                "mac": _seen(item)[1],
                "deviceID": item.device_id,
                "resource": item.resource,
            }
            for item in sandbox.attachments
        ],
    }


def _seen(item: Attachment) -> tuple[list[str], str]:
    """Addresses and MAC as the attachment's result has them."""
    if item.result is None:
        return [], ""
    result = parse_result(item.result, where="journal")
    mac = next((each.mac for each in result.interfaces if each.sandbox and each.mac), "")
    return [ip.address for ip in result.ips], mac
