"""Where this node's daemon keeps what the tools look at: as its configuration says, unless they are told otherwise."""

import argparse
import os
from pathlib import Path
from typing import Final

import msgspec

from devices.inventory import Inventory
from devices.linux.pci import SYSFS
from devices.policy_pools import joined, policy_pools
from devices.pool_config import PoolConfig
from devices.pool_file import read_config
from multus.hardware import UPSTREAM_CONFIG, config_path
from multus.policy_files import for_node, labels, read_policies
from multus.settings import DEFAULT_CONFIG, DaemonSettings, load_daemon

CONFIGS: Final = (Path(DEFAULT_CONFIG), Path("/etc/multus/daemon-config.json"))
"""The daemon's file: upstream's place, and that of our DaemonSet."""


class Places(msgspec.Struct, frozen=True, kw_only=True):
    """What a tool looks at. `pools` is the file of the pools, None when policies alone make them or there are none;
    `told`: it was named to the tool, and then policies do not count. `ask`: what the daemon says is of this hardware.
    """

    settings: DaemonSettings
    journal: Path
    socket: Path
    pools: Path | None
    told: bool
    sysfs: Path
    ask: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options that name another place."""
    parser.add_argument(
        "--settings", type=Path, metavar="FILE", help=f"the daemon's configuration ({' or '.join(map(str, CONFIGS))})"
    )
    parser.add_argument("--cni-dir", type=Path, help="the daemon's cniDir (as its configuration says)")
    parser.add_argument("--config", type=Path, help="a config.json of pools (the daemon's pools)")
    parser.add_argument("--socket-dir", type=Path, help="the daemon's socketDir (as its configuration says)")
    parser.add_argument("--sysfs", type=Path, default=SYSFS, help="another sysfs, such as a host's (%(default)s)")


def places(arguments: argparse.Namespace) -> Places:
    """The places for the options of `add_arguments`.

    :raises MultusError: the daemon's configuration cannot be used.
    """
    node = os.environ.get("MULTUS_NODE_NAME", "")
    file = arguments.settings or next((path for path in CONFIGS if path.exists()), None)
    settings = load_daemon(file, node_name=node) if file else DaemonSettings(node_name=node)
    pools = arguments.config or config_path(settings)
    if pools is None and file is None and UPSTREAM_CONFIG.is_file():
        pools = UPSTREAM_CONFIG
    return Places(
        settings=settings,
        journal=(arguments.cni_dir or Path(settings.cni_dir)) / "journal.db",
        socket=arguments.socket_dir / "multus.sock" if arguments.socket_dir else settings.socket_path,
        pools=pools,
        told=arguments.config is not None,
        sysfs=arguments.sysfs,
        ask=arguments.sysfs == SYSFS or arguments.socket_dir is not None,
    )


def of_settings(settings: DaemonSettings) -> Places:
    """The places that a daemon with these settings uses."""
    return Places(
        settings=settings,
        journal=Path(settings.cni_dir) / "journal.db",
        socket=settings.socket_path,
        pools=config_path(settings),
        told=False,
        sysfs=SYSFS,
        ask=True,
    )


def read_pools(where: Places, found: Inventory) -> PoolConfig:
    """The pools as the daemon would make them of this hardware: its file's, and those of its policies.

    :raises DeviceError: the file cannot be used. :raises MultusError: a policy cannot.
    """
    settings = where.settings
    file = read_config(where.pools) if where.pools is not None else PoolConfig()
    if where.told or not (settings.policies or settings.sriov_policies):
        return file
    folder = Path(settings.policies) if settings.policies else None
    policies = read_policies(folder, settings.sriov_policies)
    return joined(file, policy_pools(found, for_node(policies, labels(settings, found))))
