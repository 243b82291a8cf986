"""A node with SR-IOV cards, and the delegate on it."""

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from multus.cni.errors import CNIError
from multus.cni.request import Command
from multus.cni.result import Result, parse_result
from multus.delegates.plugin import Call
from multus.delegates.sriov import Sriov
from multus.delegates.sriov_record import KIND, UpstreamFiles
from tests.fake_vf_kernel import FakeKernel, MemoryStore, vf_bdf

POD = "/run/netns/pod"
ADDRESS: dict[str, object] = {
    "cniVersion": "1.0.0",
    "ips": [{"address": "10.1.0.5/24", "gateway": "10.1.0.1"}],
    "routes": [{"dst": "0.0.0.0/0"}],
    "dns": {"nameservers": ["10.1.0.2"]},
}


class Ipam:
    """The address plugin: what it answers by command, and what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Call]] = []
        self.answer: dict[str, object] = ADDRESS
        self.failing: set[Command] = set()
        self.hook: Callable[[Command], Awaitable[None]] | None = None

    @property
    def commands(self) -> list[Command]:
        return [call.command for _, call in self.calls]

    async def __call__(self, plugin: str, call: Call) -> bytes:
        self.calls.append((plugin, call))
        if self.hook is not None:
            await self.hook(call.command)
        if call.command in self.failing:
            raise CNIError(11, "the address plugin fails")
        return json.dumps(self.answer).encode() if call.command is Command.ADD else b""


class Node:
    """The delegate, with everything around it faked."""

    def __init__(self, upstream: Path) -> None:
        self.kernel = FakeKernel()
        self.kernel.space(POD)
        self.store = MemoryStore(self.kernel.calls)
        self.ipam = Ipam()
        self.upstream = upstream
        self.sriov = self.made()

    def made(self, boot_id: str = "boot-1") -> Sriov:
        """The delegate of a daemon that has just started."""
        files = UpstreamFiles(self.upstream)
        return Sriov(self.ipam, self.store, self.kernel, boot_id=boot_id, upstream=files)

    def call(self, command: Command, **more: Any) -> Call:
        vf = more.pop("vf", 0)
        around = {key: more.pop(key, value) for key, value in _AROUND.items()}
        conf = {"cniVersion": "1.0.0", "name": "net", "type": "sriov", "deviceID": vf_bdf(vf), **more}
        return Call(command=command, conf=json.dumps(conf).encode(), path=("/opt/cni/bin",), **around)

    async def run(self, command: Command, **more: Any) -> bytes:
        return await self.sriov("sriov", self.call(command, **more))

    async def add(self, **more: Any) -> Result:
        return parse_result(await self.run(Command.ADD, **more), where="sriov")

    async def delete(self, **more: Any) -> None:
        assert await self.run(Command.DEL, **more) == b""

    async def check(self, **more: Any) -> None:
        assert await self.run(Command.CHECK, **more) == b""

    @property
    def on_record(self) -> list[str]:
        return [key for kind, key in self.store.kept if kind == KIND]


_AROUND: dict[str, Any] = {"container_id": "c1", "netns": POD, "ifname": "net1", "args": (), "followed_by": ()}
