"""The floor: the same plugin binaries executed by hand, one after another, with nothing in between."""

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from multus.cli.box import Box, Sandbox

Network = Mapping[str, Any]


def run(box: Box, command: str, sandbox: Sandbox, networks: Sequence[Network], *, plugins: Path) -> float:
    """ADD or DEL of eth0, net1, net2 ... by their binaries; seconds. They run as on the box's node."""
    begin = time.perf_counter()
    numbered = list(enumerate(networks))
    for index, network in numbered if command == "ADD" else reversed(numbered):
        _network(box, command, sandbox, network, "eth0" if index == 0 else f"net{index}", plugins)
    return time.perf_counter() - begin


def _network(box: Box, command: str, sandbox: Sandbox, network: Network, ifname: str, plugins: Path) -> None:
    chain = network.get("plugins") or [network]
    previous: Any = None
    for plugin in chain if command == "ADD" else reversed(chain):
        conf = {**plugin, "name": network["name"], "cniVersion": network["cniVersion"]}
        if previous is not None:
            conf["prevResult"] = previous
        done = subprocess.run(
            [*box.enter, str(plugins / plugin["type"])],
            input=json.dumps(conf).encode(),
            capture_output=True,
            check=False,
            env={
                "PATH": os.environ["PATH"],
                "CNI_COMMAND": command,
                "CNI_CONTAINERID": f"bare-{sandbox.pod.name}",
                "CNI_NETNS": sandbox.netns,
                "CNI_IFNAME": ifname,
                "CNI_PATH": str(plugins),
            },
        )
        if done.returncode != 0:
            raise RuntimeError(f"{plugin['type']} {command}: {done.stdout!r} {done.stderr!r}")
        previous = json.loads(done.stdout) if command == "ADD" else None
