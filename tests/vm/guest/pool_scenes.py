"""Pools served to a kubelet by ours or by upstream's device plugin, and what the kubelet gets to see of them."""

import asyncio
import json
import re
import shutil
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import anyio

from devices.config import ConfigError
from devices.kubelet.api import deviceplugin_pb2 as api
from devices.kubelet.registration import Kubelet
from devices.linux.sysfs import Sysfs
from devices.manager import Manager
from devices.pool_file import read_config
from tests.fake_kubelet import FakeKubelet
from tests.vm.guest.beside import PROGRAMS, Outcome, Row
from tests.vm.guest.hardware import Hardware, bind

KUBELET: Final = Path("/var/lib/kubelet")
INFO: Final = Path("/var/run/k8s.cni.cncf.io/devinfo/dp")
NO_POOLS: Final = "refused"

Start = Callable[[Path, FakeKubelet], AbstractAsyncContextManager[bool]]


@dataclass(frozen=True, kw_only=True)
class PoolRow(Row):
    """One configuration. LEFT and RIGHT stand for the names of the two PFs, LEFT-BDF and RIGHT-BDF for their addresses,
    LEFT0 to LEFT2 and RIGHT0 and RIGHT1 for those of their VFs; LEFT2 is bound to vfio-pci.
    """

    pools: Sequence[Mapping[str, Any]]


class PoolStage:
    """Two PFs with three and two VFs."""

    def __init__(self, hardware: Hardware) -> None:
        left, right = hardware.cards[:2]
        names = {"LEFT-BDF": left.bdf, "RIGHT-BDF": right.bdf}
        for side, vfs in zip(("LEFT", "RIGHT"), hardware.create(3, 2), strict=True):
            names |= {f"{side}{number}": bdf for number, bdf in enumerate(vfs)}
        bind(names["LEFT2"], "vfio-pci")
        self._group = (Path("/sys/bus/pci/devices") / names["LEFT2"] / "iommu_group").readlink().name
        self._names = {**names, "LEFT": left.netdev, "RIGHT": right.netdev}

    async def play(self, row: PoolRow, start: Start, directory: Path) -> Outcome:
        """By resource: devices with health and NUMA node, and what a container of all of them is given.

        Only resources that have devices: upstream has no others.
        """
        text = json.dumps({"resourceList": row.pools})
        shutil.rmtree(INFO, ignore_errors=True)
        config = directory / "config.json"
        config.write_text(re.sub(r"\b(LEFT|RIGHT)(-BDF|\d)?\b", lambda found: self._names[found[0]], text))
        async with FakeKubelet(KUBELET) as kubelet, start(config, kubelet) as accepted:
            if not accepted:
                return {NO_POOLS: True}
            outcome: Outcome = {}
            for request in sorted(kubelet.registered, key=lambda each: each.resource_name):
                async with kubelet.follow(request) as follower:
                    await follower.until(lambda known: known.lists > 0)
                    if follower.health:
                        outcome[request.resource_name] = {
                            "devices": {
                                bdf: [follower.health[bdf], follower.numa[bdf]] for bdf in sorted(follower.health)
                            },
                            **await self._container(kubelet, request, sorted(follower.health)),
                        }
            return self._named(outcome)

    async def _container(
        self, kubelet: FakeKubelet, request: api.RegisterRequest, ids: Sequence[str]
    ) -> dict[str, Any]:
        asked = api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=ids)])
        async with kubelet.dial(request) as plugin:
            # Upstream tells device nodes in the variables from the second time on.
            for _ in range(2):
                (given,) = (await plugin.Allocate(asked)).container_responses
        told = {key: value for key, value in given.envs.items() if key.startswith("PCIDEVICE_")}  # ours tells more
        return {
            "env": {key: json.loads(value) if key.endswith("_INFO") else value for key, value in told.items()},
            "nodes": sorted(f"{each.host_path} {each.container_path} {each.permissions}" for each in given.devices),
        }

    def _named(self, outcome: Outcome) -> Outcome:
        """Without addresses and numbers of this machine."""
        text = json.dumps(outcome).replace(f"/dev/vfio/{self._group}", "/dev/vfio/GROUP")
        for name, real in self._names.items():
            text = text.replace(real, name)
        return dict(json.loads(text))


@asynccontextmanager
async def ours(config: Path, kubelet: FakeKubelet) -> AsyncIterator[bool]:
    """The device manager; all pools are registered when the block begins."""
    try:
        wanted = {pool.resource for pool in read_config(config).pools}
    except ConfigError:
        yield False
        return
    manager = Manager(config=config, info=INFO, sysfs=Sysfs(), kubelet=Kubelet(KUBELET, mode="register"))
    async with anyio.create_task_group() as group:
        await group.start(manager.run)
        with anyio.fail_after(15):
            for resource in wanted:
                await kubelet.wait_registered(resource)
        yield True
        group.cancel_scope.cancel()


@asynccontextmanager
async def upstream(config: Path, kubelet: FakeKubelet) -> AsyncIterator[bool]:
    """Upstream's device plugin. It looks names up in a list of PCI devices, which may be empty."""
    names = Path("/usr/share/misc/pci.ids")
    if not names.exists():
        names.parent.mkdir(parents=True, exist_ok=True)
        names.write_text("8086  Intel Corporation\n")
    command = (f"{PROGRAMS}/sriovdp", f"--config-file={config}", "--logtostderr", "--v=4")
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    assert process.stderr is not None
    ready = False
    try:
        with anyio.fail_after(40):
            async for line in process.stderr:
                if b"All servers started" in line:
                    ready = True
                    break
        yield ready
    finally:
        if process.returncode is None:
            process.kill()  # asked to stop, it takes 5 s a pool
        await process.communicate()
