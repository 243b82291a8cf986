"""The machine itself as a node: multusd in its first namespaces, where the cards are."""

import json
import subprocess
import time
from collections.abc import Mapping
from typing import Self, cast

from multus.cli.box import IPAM_DIR, Box, BoxError, Sandbox
from tests.vm.guest.daemons import Spawner


class Node(Box):
    """A box without namespaces of its own."""

    patience = 120.0
    pause = 0.1

    def __enter__(self) -> Self:
        for path in (self.manifests, self.conf_dir, self.autoconf_dir, self.state, self.ipam, self.socket_dir):
            path.mkdir(parents=True, exist_ok=True, mode=0o700)
        (self.autoconf_dir / "10-cluster-net.conflist").write_text(json.dumps(self._default))
        self.configure()
        IPAM_DIR.mkdir(parents=True, exist_ok=True)
        self.host("mount", "--bind", str(self.ipam), str(IPAM_DIR))
        return self

    def start(self, *, env: Mapping[str, str] | None = None, wait: bool = True) -> float:
        if Spawner.ready is None:
            return super().start(env=env, wait=wait)
        begin = time.perf_counter()
        started = Spawner.ready.start("--config", str(self.config), log=self.log, env=env or {})
        self.daemon = cast("subprocess.Popen[bytes]", started)
        if wait:
            self.wait(self._answers, "multusd to answer")
        return time.perf_counter() - begin

    def close(self) -> None:
        super().close()
        self.host("umount", str(IPAM_DIR))

    @property
    def enter(self) -> list[str]:
        return []


def pings(pod: Sandbox, address: str, ifname: str) -> bool:
    """Whether an echo request that leaves by that interface is answered."""
    try:
        pod.run("ping", "-q", "-c", "1", "-W", "1", "-I", ifname, address)
    except BoxError:
        return False
    return True
