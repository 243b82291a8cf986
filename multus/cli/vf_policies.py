"""`multusctl vf plan`: what the policies for SR-IOV would change on this node now. Nothing is changed."""

import argparse
from collections.abc import Mapping
from pathlib import Path

from devices.inventory import Inventory
from devices.policy import Policy, describe, plan_policies
from multus.cli import output
from multus.policy_files import for_node, labels, read_policies
from multus.settings import DEFAULT_CONFIG, DaemonSettings, load_daemon


def add_arguments(command: argparse.ArgumentParser) -> None:
    """Its own arguments."""
    command.add_argument("--policies", type=Path, metavar="DIR", help="these, and not those of the daemon")
    command.add_argument("--settings", metavar="FILE", default=DEFAULT_CONFIG, help="the daemon's (%(default)s)")


def show(arguments: argparse.Namespace, found: Inventory, held: Mapping[str, str]) -> int:
    """Say what the daemon would do."""
    there = arguments.settings != DEFAULT_CONFIG or Path(arguments.settings).exists()
    settings = load_daemon(Path(arguments.settings)) if there else DaemonSettings()
    folder = arguments.policies or (Path(settings.policies) if settings.policies else None)
    policies = read_policies(folder, () if arguments.policies else settings.sriov_policies)
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
