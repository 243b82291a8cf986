"""The policies for SR-IOV for `multusctl vf`: those of this node, and (`vf plan`) what they would change on it now."""

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
    policies = _read(settings, folder)
    if not policies:
        output.note("there are no policies")
    mine = for_node(policies, labels(settings, found))
    for each in policies:
        if each not in mine:
            output.note(output.printable(f"policy {each.name} is for other nodes: {_wanted(each)}"))
    for line in describe(plan_policies(found, mine, held), found):
        print(output.printable(line))
    return 0


def of_node(settings: DaemonSettings, found: Inventory) -> tuple[Policy, ...]:
    """Those that the daemon carries out on this node.

    :raises MultusError: they cannot be read, or one is wrong.
    """
    return for_node(_read(settings, None), labels(settings, found))


def _read(settings: DaemonSettings, folder: Path | None) -> tuple[Policy, ...]:
    """Those of a folder; without one, the daemon's."""
    inline = () if folder else settings.sriov_policies
    return read_policies(folder or (Path(settings.policies) if settings.policies else None), inline)


def _wanted(each: Policy) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(each.node_selector.items()))
