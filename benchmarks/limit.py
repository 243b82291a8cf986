"""The limits, on nodes of their own beside those that are compared: nobody who does this work can be faster.

`Kernel` makes the same links, addresses, moves and routes by raw netlink in this process, with no plugin, no address
file, no API server and no record; one request after another, as upstream's delegates. `ByHand` executes the plugins.
"""

import os
import resource
import socket
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import bare
from benchmarks.nodes import DEFAULT, Node
from benchmarks.side import Batch, check_addresses, check_empty
from devices.linux import addressing, link_changes, netdevs, netns, rtnetlink
from multus.cli.box import Box, Sandbox, plugin_dir
from multus.kube.objects import Pod

_GATEWAY = "10.244.0.1"


class _Limit(ABC):
    """What both have: pods that nobody but this process knows."""

    name = ""

    def __init__(self, box: Box, networks: Mapping[str, Mapping[str, Any]], *, prefix: str = "p") -> None:
        self.box = box
        self._networks = networks
        self._prefix = prefix
        self._wanted: dict[str, Sequence[str]] = {}
        self._count = 0

    def pods(self, count: int, networks: Sequence[str]) -> list[Sandbox]:
        """New pods."""
        made = []
        for _ in range(count):
            self._count += 1
            sandbox = Sandbox(Pod(namespace="default", name=f"{self._prefix}{self._count}", uid=""))
            self.box.pods[sandbox.pod.name] = sandbox
            self._wanted[sandbox.pod.name] = networks
            made.append(sandbox)
        return made

    def call(self, command: str, sandboxes: Sequence[Sandbox], *, at_a_time: int) -> Batch:
        """One after another, whatever `at_a_time` says."""
        run: Callable[[Sandbox], None] = self._add if command == "ADD" else self._delete
        calls = []
        before = _cpu()
        for sandbox in sandboxes:
            begin = time.perf_counter()
            run(sandbox)
            calls.append(time.perf_counter() - begin)
        return Batch(calls=calls, spent=sum(calls), shim_cpu=_cpu() - before)

    def check(self, sandbox: Sandbox, secondaries: int) -> None:
        """Every interface is there, with an address."""
        check_addresses(self.name, sandbox, secondaries)

    def remove(self, sandboxes: Sequence[Sandbox]) -> None:
        """The pods go."""
        for sandbox in sandboxes:
            check_empty(self.name, sandbox)
            self.box.remove(sandbox.pod.name)
            del self._wanted[sandbox.pod.name]

    def clean(self) -> None:
        """Nothing of any pod is on the node."""
        left = self.box.leftovers()
        if left:
            raise RuntimeError(f"{self.name}: left over: {left[:10]}")

    @abstractmethod
    def _add(self, sandbox: Sandbox) -> None:
        """What is measured as an ADD."""

    @abstractmethod
    def _delete(self, sandbox: Sandbox) -> None:
        """What is measured as a DEL."""


class ByHand(_Limit):
    """The reference plugins executed one after another, with nothing in between."""

    name = "by-hand"

    def _add(self, sandbox: Sandbox) -> None:
        bare.run(self.box, "ADD", sandbox, self._confs(sandbox), plugins=plugin_dir())

    def _delete(self, sandbox: Sandbox) -> None:
        bare.run(self.box, "DEL", sandbox, self._confs(sandbox), plugins=plugin_dir())

    def _confs(self, sandbox: Sandbox) -> list[Mapping[str, Any]]:
        return [DEFAULT, *(self._networks[name] for name in self._wanted[sandbox.pod.name])]


class Kernel(_Limit):
    """Raw netlink. The bridge and the socket on the node are made once, as a daemon has them."""

    name = "kernel"

    def __init__(self, box: Box, networks: Mapping[str, Mapping[str, Any]], *, prefix: str = "p") -> None:
        super().__init__(box, networks, prefix=prefix)
        self._node = netns.open_socket(f"/proc/{box.holder}/ns/net")
        link_changes.create_bridge(self._node, "cni0")
        bridge, master = link_changes.find(self._node, "cni0"), link_changes.find(self._node, "eth0")
        assert bridge is not None and master is not None
        self._bridge, self._master = bridge.index, master.index
        if f"{_GATEWAY}/16" not in link_changes.addresses(self._node, self._bridge):
            addressing.configure(self._node, self._bridge, [f"{_GATEWAY}/16"], [])
        netdevs.change(self._node, self._bridge, netdevs.Change(up=True))

    def close(self) -> None:
        """Close the socket."""
        self._node.close()

    def _add(self, sandbox: Sandbox) -> None:
        number = int(sandbox.pod.name.removeprefix(self._prefix))
        host = f"{255 - number // 250 % 50}.{number % 250 + 2}"  # from the end: the daemon's pods begin at the other
        namespace = os.open(sandbox.netns, os.O_RDONLY | os.O_CLOEXEC)
        try:
            with netns.open_socket(sandbox.netns) as inside:
                port = f"kernel{number}"
                link_changes.create_veth(self._node, name=port, peer="eth0", peer_namespace=namespace)
                made = link_changes.find(self._node, port)
                assert made is not None
                link_changes.join_bridge(self._node, made.index, self._bridge, hairpin=False)
                eth0 = _up(inside, "eth0", f"10.244.{host}/16")
                rtnetlink.change_all(inside, [link_changes.adding_route(eth0, "0.0.0.0/0", _GATEWAY)])
                for number, _ in enumerate(self._wanted[sandbox.pod.name], 1):
                    name = f"net{number}"
                    link_changes.create_child(
                        self._node,
                        kind="macvlan",
                        data=link_changes.macvlan_data("bridge"),
                        master=self._master,
                        namespace=namespace,
                        name=name,
                    )
                    _up(inside, name, f"10.{100 + number}.{host}/16")
        finally:
            os.close(namespace)

    def _delete(self, sandbox: Sandbox) -> None:
        names = [f"net{number}" for number in range(len(self._wanted[sandbox.pod.name]), 0, -1)]
        with netns.open_socket(sandbox.netns) as inside:
            for name in (*names, "eth0"):
                link_changes.delete(inside, name)


class KernelAtOnce(Kernel):
    """The same, but a DEL removes the pod's interfaces as one group: the kernel waits for its readers once."""

    name = "kernel-1"

    def _delete(self, sandbox: Sandbox) -> None:
        names = [*(f"net{number}" for number in range(1, len(self._wanted[sandbox.pod.name]) + 1)), "eth0"]
        with netns.open_socket(sandbox.netns) as inside:
            if not link_changes.delete_all(inside, names):
                raise RuntimeError(f"{self.name}: {sandbox.pod.name}: its interfaces cannot be removed together")


class Bare(Node):
    """A node without a daemon."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, default=DEFAULT)

    def recorded(self) -> list[str]:
        """Nobody records anything."""
        return []


def _up(inside: socket.socket, name: str, address: str) -> int:
    found = link_changes.find(inside, name)
    assert found is not None
    addressing.configure(inside, found.index, [address], [])
    netdevs.change(inside, found.index, netdevs.Change(up=True))
    return found.index


def _cpu() -> float:
    """CPU seconds of this process and of its children that have ended."""
    used = [resource.getrusage(each) for each in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)
