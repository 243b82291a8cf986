"""A pool at a fake kubelet that speaks the real protocol: registration, lists, allocation, and what goes wrong."""

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.client import Channel, StreamStreamMethod
from grpclib.exceptions import GRPCError

from devices.errors import DeviceError
from devices.kubelet.allocate import Device, Grant
from devices.kubelet.api import deviceplugin_pb2 as api
from devices.kubelet.registration import Kubelet
from devices.kubelet.service import Pace
from devices.kubelet.sockets import Rival, socket_name
from devices.linux.nodes import Nodes
from devices.offers import Offer
from tests.fake_kubelet import FakeKubelet

pytestmark = pytest.mark.anyio

VF = "intel.com/sriov"
A, B = "0000:03:02.0", "0000:03:02.1"
QUICK = Pace(period=5.0, patience=0.3, settle=0.05, first=0.02, longest=0.1, call=2.0)


async def give(ids: Sequence[str]) -> Sequence[Grant]:
    if "gone" in ids:
        raise DeviceError("device gone is not there", hint="it vanished")
    return [Grant(id=id_, parent="0000:03:00.0", nodes=Nodes(group=id_[-1])) for id_ in ids]


def offer(*devices: Device, resource: str = VF) -> Offer:
    made = Offer(resource, give)
    made.update(devices)
    return made


@asynccontextmanager
async def serving(directory: Path, *offers: Offer, **options: Any) -> AsyncIterator[Kubelet]:
    kubelet = Kubelet(directory, **{"pace": QUICK, **options})
    async with anyio.create_task_group() as group:
        await group.start(kubelet.run)
        for each in offers:
            kubelet.serve(each)
        yield kubelet
        group.cancel_scope.cancel()


async def registered(kubelet: FakeKubelet, resource: str = VF) -> api.RegisterRequest:
    with anyio.fail_after(10):
        return await kubelet.wait_registered(resource)


async def changed(path: Path, before: int) -> None:
    """Wait for a file that was made at another time."""
    with anyio.fail_after(10):
        while not path.exists() or path.stat().st_ctime_ns == before:
            await anyio.sleep(0.01)


async def failures(pool: Offer, number: int) -> None:
    with anyio.fail_after(10):
        while pool.counts.registration_failures < number:
            await anyio.sleep(0.01)


async def test_registration_and_lists(tmp_path: Path) -> None:
    pool = offer(Device(id=B, numa=1), Device(id=A, healthy=False))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool) as client:
        request = await registered(kubelet)
        assert (request.version, request.endpoint) == ("v1beta1", "intel.com_sriov.sock")
        assert request.options.get_preferred_allocation_available
        assert not request.options.pre_start_required
        async with kubelet.follow(request) as follower:
            await follower.until(lambda heard: heard.health == {A: "Unhealthy", B: "Healthy"})
            assert follower.numa == {A: None, B: 1}
            assert client.services[VF].connected
            assert pool.update([Device(id=A)])
            await follower.until(lambda heard: heard.health == {A: "Healthy"})
            assert not pool.update([Device(id=A)])  # nothing new, nothing said
            pool.update([])  # an empty pool is one of 0 devices, not none
            await follower.until(lambda heard: heard.health == {} and heard.lists == 3)
        assert pool.counts.updates == 3
        assert pool.counts.registrations == 1


async def test_ids_that_no_kubelet_takes_stay_out() -> None:
    assert list(offer(Device(id="x" * 64), Device(id="x" * 63)).devices) == ["x" * 63]


async def test_allocation(tmp_path: Path) -> None:
    pool = offer(Device(id=A), Device(id=B))
    async with (
        FakeKubelet(tmp_path) as kubelet,
        serving(tmp_path, pool),
        kubelet.dial(await registered(kubelet)) as plugin,
    ):
        options = await plugin.GetDevicePluginOptions(api.Empty())
        assert options.get_preferred_allocation_available
        request = api.AllocateRequest(
            container_requests=[
                api.ContainerAllocateRequest(devices_ids=[B, A]),
                api.ContainerAllocateRequest(devices_ids=[]),
            ]
        )
        answer = await plugin.Allocate(request)
        first, second = answer.container_responses
        assert first.envs["PCIDEVICE_INTEL_COM_SRIOV"] == f"{A},{B}"
        assert json.loads(first.envs["PCIDEVICE_INTEL_COM_SRIOV_INFO"])[B]["vfio"]["dev-mount"] == "/dev/vfio/1"
        assert [(spec.host_path, spec.container_path, spec.permissions) for spec in first.devices] == [
            (path, path, "rw") for path in ("/dev/vfio/vfio", "/dev/vfio/0", "/dev/vfio/1")
        ]
        assert second.envs["PCIDEVICE_INTEL_COM_SRIOV"] == ""
        await plugin.PreStartContainer(api.PreStartContainerRequest(devices_ids=[A]))
        with pytest.raises(GRPCError, match="device gone is not there"):
            await plugin.Allocate(
                api.AllocateRequest(container_requests=[api.ContainerAllocateRequest(devices_ids=["gone"])])
            )
    assert (pool.counts.allocations, pool.counts.refusals) == (2, 1)


async def test_preferred_allocation(tmp_path: Path) -> None:
    pool = offer(Device(id=A, numa=0), Device(id=B, numa=1), Device(id="c", numa=1))
    async with (
        FakeKubelet(tmp_path) as kubelet,
        serving(tmp_path, pool),
        kubelet.dial(await registered(kubelet)) as plugin,
    ):
        asked = api.ContainerPreferredAllocationRequest(
            available_deviceIDs=[A, B, "c"], must_include_deviceIDs=["c"], allocation_size=2
        )
        answer = await plugin.GetPreferredAllocation(api.PreferredAllocationRequest(container_requests=[asked]))
    assert [list(each.deviceIDs) for each in answer.container_responses] == [["c", B]]


async def test_a_kubelet_that_restarts(tmp_path: Path) -> None:
    """Its directory is emptied and its socket a new one: found out at once, not at the next look."""
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        for _ in range(3):
            async with kubelet.follow(await registered(kubelet)) as follower:
                await follower.until(lambda heard: heard.health == {A: "Healthy"})
                await kubelet.stop()
                await kubelet.start()
    assert pool.counts.registrations >= 3


async def test_a_kubelet_that_comes_later(tmp_path: Path) -> None:
    """Neither it nor its directory is there; and what another left behind does not answer."""
    directory = tmp_path / "kubelet"
    pool = offer(Device(id=A))
    async with serving(directory, pool, pace=Pace(period=0.05, first=0.02, longest=0.1)):
        await failures(pool, 1)
        async with FakeKubelet(directory) as kubelet, kubelet.follow(await registered(kubelet)) as follower:
            await follower.until(lambda heard: heard.health == {A: "Healthy"})


async def test_a_kubelet_that_died(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its socket is still there; attempts go on, and the log has the failure once."""
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet:
        await kubelet.stop()
        async with serving(tmp_path, pool):
            await failures(pool, 3)
            await kubelet.start()
            async with kubelet.follow(await registered(kubelet)) as follower:
                await follower.until(lambda heard: heard.health == {A: "Healthy"})
    assert caplog.text.count("does not take") == 1


async def test_a_kubelet_that_refuses(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet:
        kubelet.refusing = "invalid resource name"
        async with serving(tmp_path, pool):
            await failures(pool, 2)
            assert "does not take intel.com/sriov: UNKNOWN: invalid resource name" in caplog.text
            kubelet.refusing = ""
            await registered(kubelet)


async def test_a_kubelet_that_hangs(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = offer(Device(id=A))
    listening = tmp_path / "device-plugins" / "kubelet.sock"
    listening.parent.mkdir()
    async with await anyio.create_unix_listener(listening), serving(tmp_path, pool, pace=Pace(call=0.05)):
        await failures(pool, 1)
        assert "did not answer Register within 0.05 s" in caplog.text


async def test_a_socket_that_is_deleted(tmp_path: Path) -> None:
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        request = await registered(kubelet)
        path = tmp_path / "device-plugins" / request.endpoint
        kubelet.registered.clear()
        path.unlink()
        async with kubelet.follow(await registered(kubelet)) as follower:
            await follower.until(lambda heard: heard.health == {A: "Healthy"})
        assert path.exists()
    assert not path.exists()  # stopped, and cleaned up


async def test_a_stream_that_dies(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The kubelet lives, its socket is the same, and it has stopped following: nothing but the stream tells."""
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        request = await registered(kubelet)
        async with kubelet.follow(request) as follower:
            await follower.until(lambda heard: heard.lists == 1)
            kubelet.registered.clear()
        async with kubelet.follow(await registered(kubelet)) as follower:
            await follower.until(lambda heard: heard.health == {A: "Healthy"})
    assert "does not follow any more" in caplog.text


async def test_a_kubelet_that_never_follows(tmp_path: Path) -> None:
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        with anyio.fail_after(10):
            while len(kubelet.registered) < 3:
                await anyio.sleep(0.01)


async def test_pools_come_and_go(tmp_path: Path) -> None:
    first, second = offer(Device(id=A)), offer(Device(id=B), resource="intel.com/other")
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, first) as client:
        async with kubelet.follow(await registered(kubelet)) as follower:
            await follower.until(lambda heard: heard.lists == 1)
            client.serve(second)
            request = await registered(kubelet, "intel.com/other")
            async with kubelet.follow(request) as another:
                await another.until(lambda heard: heard.health == {B: "Healthy"})
                await client.withdraw("intel.com/other")
                await another.until(lambda heard: heard.ended)
                assert another.health == {}  # said before the end
            assert not (tmp_path / "device-plugins" / request.endpoint).exists()
            assert (follower.ended, follower.health) == (False, {A: "Healthy"})  # nothing of the other's business
        assert list(client.services) == [VF]


async def test_found_by_the_kubelet(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where there is a plugins_registry, the plugin is found there, and makes itself found again when it must."""
    folder = tmp_path / "plugins_registry"
    folder.mkdir()
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        path = folder / "intel.com_sriov.sock"
        await changed(path, 0)
        info = await kubelet.introduce(path)
        assert (info.type, info.name, info.endpoint) == ("DevicePlugin", VF, "")
        assert list(info.supported_versions) == ["v1beta1"]
        assert kubelet.registered == []
        request = api.RegisterRequest(endpoint=path.name)
        for _ in range(2):
            before = path.stat().st_ctime_ns
            async with kubelet.follow(request, folder=folder.name) as follower:
                await follower.until(lambda heard: heard.health == {A: "Healthy"})
            await changed(path, before)  # the stream has ended: a new socket is what a kubelet notices
        before = path.stat().st_ctime_ns
        await kubelet.introduce(path, refusal="wrong version")
        await changed(path, before)
        assert "the kubelet does not take intel.com/sriov: wrong version" in caplog.text


async def test_other_callers_and_noise(tmp_path: Path) -> None:
    """What is no gRPC, or breaks off, costs the plugin nothing."""
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        request = await registered(kubelet)
        path = tmp_path / "device-plugins" / request.endpoint
        async with await anyio.connect_unix(path) as noise:
            await noise.send(b"GET / HTTP/1.1\r\n\r\n")
        async with Channel(path=str(path)) as channel:
            name = "/v1beta1.DevicePlugin/Allocate"
            method = StreamStreamMethod(channel, name, api.AllocateRequest, api.AllocateResponse)
            with pytest.raises(GRPCError, match="carries no request"):
                async with method.open() as stream:
                    await stream.send_request(end=True)
                    await stream.recv_message()
        async with kubelet.follow(request) as follower:
            await follower.until(lambda heard: heard.health == {A: "Healthy"})


@pytest.mark.parametrize(("length", "plain"), [(10, True), (200, False)])
def test_socket_names_fit_an_address(length: int, plain: bool) -> None:
    directory = Path("/var/lib/kubelet/device-plugins")
    names = {socket_name(f"{'x' * length}.com/{end}", directory) for end in "ab"}
    assert len(names) == 2
    assert all(len(f"{directory}/{name}") <= 107 for name in names)
    assert (f"{'x' * length}.com_a.sock" in names) is plain


# another plugin of the same resource

_PLUGIN = """
import socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.bind(sys.argv[1])
    server.listen()
    print("listens", flush=True)
    sys.stdin.read()
"""


@contextmanager
def stranger(path: Path) -> Iterator[int]:
    """Another program that listens there, as upstream's device plugin does; its pid."""
    path.unlink(missing_ok=True)
    command = [sys.executable, "-c", _PLUGIN, path.name]
    with subprocess.Popen(command, cwd=path.parent, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"listens\n"
        yield process.pid
        assert process.stdin is not None
        process.stdin.close()


@pytest.mark.parametrize("folder", ["device-plugins", "plugins_registry"])
async def test_a_resource_is_not_fought_for(tmp_path: Path, caplog: pytest.LogCaptureFixture, folder: str) -> None:
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet:
        path = tmp_path / folder / "intel.com_sriov.sock"
        path.parent.mkdir(exist_ok=True)
        with stranger(path) as pid:
            there = path.stat().st_ino
            async with serving(tmp_path, pool, mode="register") as client:
                await failures(pool, 3)
                assert (kubelet.registered, path.stat().st_ino) == ([], there)
                assert client.services[VF].rival == Rival(path=path, pid=pid)
                assert caplog.text.count("another device plugin serves intel.com/sriov on") == 1
                assert "(python" in caplog.text
                assert f"{pid})" in caplog.text
        assert path.stat().st_ino == there


async def test_a_resource_that_another_takes_is_left_to_it_until_it_ends(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pool = offer(Device(id=A))
    caplog.set_level("INFO")
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool) as client:
        path = tmp_path / "device-plugins" / (await registered(kubelet)).endpoint
        kubelet.registered.clear()
        with stranger(path) as pid:
            await failures(pool, 1)
            rival = client.services[VF].rival
            assert (rival, client.services[VF].path) == (Rival(path=path, pid=pid), None)
            assert kubelet.registered == []
        # It was killed: its socket is still there, and nobody listens.
        async with kubelet.follow(await registered(kubelet)) as follower:
            await follower.until(lambda heard: heard.health == {A: "Healthy"})
        assert client.services[VF].rival is None
    assert "nobody else serves it any more" in caplog.text


async def test_plugins_of_other_resources_are_told_of_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pool = offer(Device(id=A))
    async with FakeKubelet(tmp_path) as kubelet, serving(tmp_path, pool):
        await registered(kubelet)
        folder = tmp_path / "device-plugins"
        with stranger(folder / "intel.com_vfs.sock"), stranger(folder / "nvidia.com_gpu.sock"):
            (folder / "intel.com_dead.sock").touch()
            (folder / "x").touch()
            with anyio.fail_after(10):
                while "another device plugin is at work" not in caplog.text:
                    await anyio.sleep(0.01)
            (folder / "y").touch()
            await anyio.sleep(0.1)
    assert caplog.text.count("another device plugin is at work") == 1
    assert "intel.com_vfs.sock" in caplog.text
    assert "nvidia.com_gpu.sock" not in caplog.text
    assert "intel.com_dead.sock" not in caplog.text
