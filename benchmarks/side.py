"""Those that are compared: each is a node in a box of its own, with a light API server of its own that it asks.

All are the same but for the daemon and the plugin binary. What a call left behind is looked at after each batch, so
that no figure is of a call that did not do its work.
"""

import json
import os
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec

from benchmarks import caller
from benchmarks.attach import NETWORKS, memory
from benchmarks.nodes import PORT, Thin
from multus.cli import runtime
from multus.cli.box import Box, Sandbox
from multus.errors import MultusError
from multus.kube.objects import Pod

_SETTLE = 0.25  # seconds after a batch, for events and statuses that are written after the answer
_TICK = os.sysconf("SC_CLK_TCK")
_ACCOUNT = "/run/secrets/kubernetes.io/serviceaccount"  # where client-go looks, and we


class CallsFailedError(Exception):
    """Calls of a batch failed, so that there is no figure."""


class Batch(msgspec.Struct, kw_only=True):
    """What one batch of pods cost, ADDs or DELs: seconds each and in all, CPU seconds, requests by what they were.

    `own_cpu` is the daemon's, `daemon_cpu` that and its children's, `shim_cpu` that of what the caller executed,
    `caller_cpu` the caller's own (of a limit, `shim_cpu` has that too).
    """

    calls: list[float]
    spent: float
    own_cpu: float = 0.0
    daemon_cpu: float = 0.0
    shim_cpu: float
    caller_cpu: float = 0.0
    server_cpu: float = 0.0
    requests: dict[str, int] = {}


class Server(Protocol):
    """An API server on a node's loopback, told what to hold; see `benchmarks.apiserver` for the light one."""

    account: Path
    """What a pod is given: ca.crt and token."""

    @property
    def pid(self) -> int:
        """The process."""
        ...

    def ask(self, do: str, **arguments: Any) -> Any:
        """One thing to do: pod, nad, delete, status, watching, requests."""
        ...

    def close(self) -> None:
        """End it."""
        ...


MakeServer = Callable[[Box], Server]


class Contender(Protocol):
    """What the points are measured on: `Side` with an API server, and the limits (`benchmarks.limit`)."""

    @property
    def name(self) -> str:
        """One word for the table."""
        ...

    def pods(self, count: int, networks: Sequence[str]) -> list[Sandbox]:
        """New pods that want these networks beside the default one."""
        ...

    def call(self, command: str, sandboxes: Sequence[Sandbox], *, at_a_time: int) -> Batch:
        """ADD or DEL of each."""
        ...

    def check(self, sandbox: Sandbox, secondaries: int) -> None:
        """Raise RuntimeError unless everything stands."""
        ...

    def remove(self, sandboxes: Sequence[Sandbox]) -> None:
        """The pods go; raise RuntimeError when something is left in one."""
        ...

    def clean(self) -> None:
        """Raise RuntimeError when something is left on the node."""
        ...


class Side:
    """Ours, or upstream's thick or thin one on a box (`benchmarks.nodes`); `server` makes its API server there."""

    def __init__(self, name: str, box: Box, server: MakeServer) -> None:
        self.name = name
        self.box = box
        self._make_server = server
        self._server: Server | None = None
        self._count = 0
        self.attached = 0
        self.idle_mib = 0.0

    @property
    def server(self) -> Server:
        """Its API server."""
        assert self._server is not None
        return self._server

    def start(self, networks: Mapping[str, Mapping[str, Any]]) -> None:
        """The daemon answers when this returns, and its watches stand."""
        box = self.box
        server = self._server = self._make_server(box)
        for name, config in networks.items():
            server.ask("nad", name=name, config=json.dumps(config))
        if isinstance(box, Thin):
            box.write_conf(server.account)
            return
        box.host("mount", "-t", "tmpfs", "none", "/run")
        box.host("mkdir", "-p", _ACCOUNT)
        box.host("mount", "--bind", str(server.account), _ACCOUNT)
        before = server.ask("watching")
        box.start(
            env={
                "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                "KUBERNETES_SERVICE_PORT": str(PORT),
                "MULTUS_NODE_NAME": "box",
            }
        )
        box.wait(lambda: all(map(int.__gt__, server.ask("watching"), before)), "its watches", seconds=60)
        box.wait(self._configured, "its CNI configuration")
        time.sleep(1.0)
        self.idle_mib = memory(box)

    def _configured(self) -> bool:
        """Whether its CNI configuration stands whole: upstream does not write it in one step."""
        try:
            return bool(self.box.conf())
        except runtime.RuntimeFailure:
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
        """The calls of a batch, by the plugin binary as a runtime makes them.

        :raises CallsFailedError: not all of them did what they should.
        """
        conf = self.box.conf()
        programs = [self._program(command, sandbox) for sandbox in sandboxes]
        self.server.ask("requests")
        before, own_before = self._cpu(), _used(resource.RUSAGE_SELF)
        begin = time.monotonic()
        try:
            ended = caller.run(programs, stdin=conf, at_a_time=at_a_time)
        except caller.CallerError as error:
            raise CallsFailedError(f"{command}s failed: {error}") from error
        spent = time.monotonic() - begin
        caller_cpu = _used(resource.RUSAGE_SELF) - own_before
        self._check_answers(command, ended)
        time.sleep(_SETTLE)
        own, daemon, shim, server = (after - first for after, first in zip(self._cpu(), before, strict=True))
        requests = self.server.ask("requests")
        if command == "ADD":
            self.attached += len(ended)
        return Batch(
            calls=[each.seconds for each in ended],
            spent=spent,
            own_cpu=own,
            daemon_cpu=daemon,
            shim_cpu=shim,
            caller_cpu=caller_cpu,
            server_cpu=server,
            requests=dict(requests),
        )

    def _program(self, command: str, sandbox: Sandbox) -> caller.Program:
        shim = self.box.shim
        # Upstream's thin one works in the caller's namespaces, so it has to be on the node.
        enter = self.box.enter if isinstance(self.box, Thin) else []
        env = runtime.environment(command, shim=shim, pod=sandbox.pod, netns=sandbox.netns)
        return caller.Program(line=[*enter, str(shim)], env=env)

    def _check_answers(self, command: str, ended: Sequence[caller.Ended]) -> None:
        failures = []
        for each in sorted(ended, key=lambda one: one.end):
            try:
                runtime.read_answer(each.code, each.stdout, each.stderr, shim=self.box.shim)
            except MultusError as error:
                failures.append(error)
        if failures:
            raise CallsFailedError(f"{len(failures)} of {len(ended)} {command}s failed: {failures[0]}")

    def check(self, sandbox: Sandbox, secondaries: int) -> None:
        """Every interface is there with the address that the pod's status says, and the status names them all.

        :raises RuntimeError: something is not so.
        """
        status = self.server.ask("status", name=sandbox.pod.name) or []
        said = {entry["interface"]: entry["ips"] for entry in status}
        found = check_addresses(self.name, sandbox, secondaries)
        if found != said:
            raise RuntimeError(f"{self.name}: {sandbox.pod.name}: in the pod {found}, in its status {said}")

    def remove(self, sandboxes: Sequence[Sandbox]) -> None:
        """The pods go, after their DELs.

        :raises RuntimeError: an interface is still in one.
        """
        for sandbox in sandboxes:
            check_empty(self.name, sandbox)
            self.server.ask("delete", name=sandbox.pod.name)
            self.box.remove(sandbox.pod.name)

    def clean(self) -> None:
        """Nothing of any pod is on the node.

        :raises RuntimeError: something is.
        """
        left = self.box.leftovers()
        if left:
            raise RuntimeError(f"{self.name}: left over: {left[:10]}")

    def cpu(self) -> float:
        """CPU seconds of the daemon."""
        return self._cpu()[0]

    def _cpu(self) -> tuple[float, float, float, float]:
        own, all_of_it = spent(self.box.daemon.pid) if self.box.daemon is not None else (0.0, 0.0)
        return own, all_of_it, _used(resource.RUSAGE_CHILDREN), spent(self.server.pid)[0]


def check_addresses(who: str, sandbox: Sandbox, secondaries: int) -> dict[str, list[str]]:
    """The pod's interfaces with their addresses of IPv4.

    :raises RuntimeError: they are not eth0 and so many others, or one has no address.
    """
    found = {
        link["ifname"].partition("@")[0]: [each["local"] for each in link["addr_info"] if each["family"] == "inet"]
        for link in json.loads(sandbox.run("ip", "-j", "address"))
        if link["ifname"] != "lo"
    }
    wanted = ["eth0", *(f"net{number}" for number in range(1, secondaries + 1))]
    if sorted(found) != sorted(wanted) or not all(found.values()):
        raise RuntimeError(f"{who}: {sandbox.pod.name}: {wanted} wanted, in the pod {found}")
    return found


def check_empty(who: str, sandbox: Sandbox) -> None:
    """Nothing is in the pod any more.

    :raises RuntimeError: an interface is.
    """
    left = [link["ifname"] for link in json.loads(sandbox.run("ip", "-j", "link")) if link["ifname"] != "lo"]
    if left:
        raise RuntimeError(f"{who}: {sandbox.pod.name} still has {left} after its DEL")


def spent(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and with its children that have ended."""
    fields = [int(field) for field in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:15]]
    return sum(fields[:2]) / _TICK, sum(fields) / _TICK


def _used(who: int) -> float:
    """CPU seconds, of this process or of its children that have ended."""
    used = resource.getrusage(who)
    return used.ru_utime + used.ru_stime
