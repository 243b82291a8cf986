"""`multusctl vf plan`: what the policies for SR-IOV would change on this node now. Nothing is changed."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from devices.inventory import Inventory
from devices.policy import Policy, describe, plan_policies
from multus.cli import output
from multus.policy_files import for_node, labels, read_policies
from multus.settings import DaemonSettings


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    command.add_argument("--policies", type=Path, metavar="DIR", help="these, and not those of the daemon")


def show(settings: DaemonSettings, folder: Path | None, found: Inventory, held: Mapping[str, str]) -> int:
    """Say what the daemon would do, or what it would by the policies in `folder` instead of its own."""
    inline = () if folder else settings.sriov_policies
    folder = folder or (Path(settings.policies) if settings.policies else None)
    policies = read_policies(folder, inline)
    if not policies:
        output.note("there are no policies")
    mine = for_node(policies, labels(settings, found))
    for each in policies:
        if each not in mine:
            output.note(output.printable(f"policy {each.name} is for other nodes: {_wanted(each)}"))
    for line in describe(plan_policies(found, mine, held), found):
        print(output.printable(line))
    return 0


def _wanted(each: Policy) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(each.node_selector.items()))
