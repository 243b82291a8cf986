"""One of the two that are compared: a node in a box of its own, a daemon on it, and a light API server that it asks.

Both sides are the same but for the daemon and its plugin binary. What a call left behind is looked at after each batch,
so that no figure is of a call that did not do its work.
"""

import json
import os
import resource
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import msgspec

from benchmarks import peers
from benchmarks.apiserver import PORT, ApiServer
from benchmarks.attach import NETWORKS, memory
from multus.cli.box import DEFAULT_NETWORK, Box, Sandbox
from multus.cli.runtime import RuntimeFailure
from multus.kube.objects import Pod

_SETTLE = 0.25  # seconds after a batch, for events and statuses that are written after the answer
_TICK = os.sysconf("SC_CLK_TCK")
_ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"  # where client-go looks, and we

# A single conf and no list: of a list's plugins this upstream's DEL loses the address ranges, so that every address
# leaks and no figure would count.
_PLUGINS = cast("Sequence[Mapping[str, object]]", DEFAULT_NETWORK["plugins"])
DEFAULT: Mapping[str, object] = {**{key: DEFAULT_NETWORK[key] for key in ("cniVersion", "name")}, **_PLUGINS[0]}


class Batch(msgspec.Struct, kw_only=True):
    """What one batch of pods cost, ADDs or DELs: seconds each and in all, CPU seconds, requests by what they were.

    `own_cpu` is the daemon's, `daemon_cpu` that and its children's.
    """

    calls: list[float]
    spent: float
    own_cpu: float
    daemon_cpu: float
    shim_cpu: float
    server_cpu: float
    requests: dict[str, int]


class Side:
    """`name` is ours or upstream."""

    def __init__(self, name: str, box: Box) -> None:
        self.name = name
        self.box = box
        self._server: ApiServer | None = None
        self._count = 0
        self.attached = 0
        self.idle_mib = 0.0

    @property
    def server(self) -> ApiServer:
        """Its API server."""
        assert self._server is not None
        return self._server

    def start(self, networks: Mapping[str, Mapping[str, Any]]) -> None:
        """The daemon answers when this returns, and its watches stand."""
        box = self.box
        self._server = ApiServer(box.directory / "account", enter=box.enter)
        for name, config in networks.items():
            self.server.ask("nad", name=name, config=json.dumps(config))
        box.host("mount", "-t", "tmpfs", "none", "/run")
        box.host("mkdir", "-p", _ACCOUNT)
        box.host("mount", "--bind", str(box.directory / "account"), _ACCOUNT)
        box.start(
            env={
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(PORT),
                "MULTUS_NODE_NAME": "box",
            }
        )
        box.wait(lambda: all(self.server.ask("watching")), "its watches")
        box.wait(self._configured, "its CNI configuration")
        time.sleep(1.0)
        self.idle_mib = memory(box)

    def _configured(self) -> bool:
        """Whether its CNI configuration stands whole: upstream does not write it in one step."""
        try:
            return bool(self.box.conf())
        except RuntimeFailure:
            return False

    def close(self) -> None:
        """End the API server; the box is its maker's to close."""
        if self._server is not None:
            self._server.close()

    def pods(self, count: int, networks: Sequence[str]) -> list[Sandbox]:
        """New pods, seen by the daemon's watch as they are long before a runtime's call."""
        made = []
        for _ in range(count):
            self._count += 1
            name = f"p{self._count}"
            uid = self.server.ask("pod", name=name, annotations={NETWORKS: ",".join(networks)} if networks else {})
            sandbox = Sandbox(Pod(namespace="default", name=name, uid=uid))
            self.box.pods[name] = sandbox
            made.append(sandbox)
        time.sleep(_SETTLE)
        return made

    def call(self, command: str, sandboxes: Sequence[Sandbox], *, at_a_time: int) -> Batch:
        """The calls of a batch, by the plugin binary as a runtime makes them."""
        conf = self.box.conf()
        self.server.ask("requests")
        before = self._cpu()
        with ThreadPoolExecutor(at_a_time) as pool:
            begin = time.perf_counter()
            calls = list(pool.map(lambda each: self.box.cni(command, each, conf=conf).seconds, sandboxes))
            spent = time.perf_counter() - begin
        time.sleep(_SETTLE)
        own, daemon, shim, server = (after - first for after, first in zip(self._cpu(), before, strict=True))
        requests = self.server.ask("requests")
        if command == "ADD":
            self.attached += len(calls)
        return Batch(
            calls=calls,
            spent=spent,
            own_cpu=own,
            daemon_cpu=daemon,
            shim_cpu=shim,
            server_cpu=server,
            requests=dict(requests),
        )

    def check(self, sandbox: Sandbox, networks: int) -> None:
        """Every interface is there with the address that the pod's status says, and the status names them all.

        :raises RuntimeError: something is not so.
        """
        name = sandbox.pod.name
        status = self.server.ask("status", name=name) or []
        said = {entry["interface"]: entry["ips"] for entry in status}
        found = {
            link["ifname"].partition("@")[0]: [each["local"] for each in link["addr_info"] if each["family"] == "inet"]
            for link in json.loads(sandbox.run("ip", "-j", "address"))
            if link["ifname"] != "lo"
        }
        wanted = ["eth0", *(f"net{number}" for number in range(1, networks))]
        if sorted(found) != sorted(wanted) or found != said or not all(found.values()):
            raise RuntimeError(f"{self.name}: {name}: {wanted} wanted; in the pod {found}, in its status {said}")

    def remove(self, sandboxes: Sequence[Sandbox]) -> None:
        """The pods go, after their DELs.

        :raises RuntimeError: an interface is still in one.
        """
        for sandbox in sandboxes:
            left = [link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")) if link["ifname"] != "lo"]
            if left:
                raise RuntimeError(f"{self.name}: {sandbox.pod.name} still has {left} after its DEL")
            self.server.ask("delete", name=sandbox.pod.name)
            self.box.remove(sandbox.pod.name)

    def clean(self) -> None:
        """Nothing of any pod is on the node.

        :raises RuntimeError: something is.
        """
        left = self.box.leftovers()
        if left:
            raise RuntimeError(f"{self.name}: left over: {left[:10]}")

    def _cpu(self) -> tuple[float, float, float, float]:
        assert self.box.daemon is not None
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        own, all_of_it = _spent(self.box.daemon.pid)
        return own, all_of_it, used.ru_utime + used.ru_stime, _spent(self.server.pid)[0]


class Upstream(Box):
    """The node with upstream's daemon: it has no journal, and answers another probe."""

    probe = b"GET /healthz HTTP/1.1\r\nHost: box\r\n\r\n"

    def __init__(self, directory: Path) -> None:
        # As in upstream's manifest, but for the paths. Its chroot is left out: that costs it a little more.
        super().__init__(
            directory,
            default=DEFAULT,
            settings={
                "multusConfigFile": "auto",
                "daemonSocketDir": str(directory / "run"),
                "logLevel": "verbose",
                "manifests": "",
            },
            multusd=[str(peers.directory() / "multus-daemon")],
        )
        self.shim = peers.directory() / "multus-shim"

    def recorded(self) -> list[str]:
        """Its scratch files, one a container."""
        return [f"file {path.name}" for path in self.state.iterdir() if path.is_file()]


def _spent(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and with its children that have ended."""
    fields = [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return sum(fields[:2]) / _TICK, sum(fields) / _TICK
