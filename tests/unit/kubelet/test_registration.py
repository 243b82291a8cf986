"""The generated device plugin stubs against the fake kubelet, each in the part it has on a node."""

from pathlib import Path
from typing import Any

import pytest
from grpclib.client import Channel
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from devices.kubelet.api import deviceplugin_grpc, pluginregistration_pb2
from devices.kubelet.api import deviceplugin_pb2 as api
from tests.fake_kubelet import FakeKubelet

pytestmark = pytest.mark.anyio


class Plugin(deviceplugin_grpc.DevicePluginBase):
    async def GetDevicePluginOptions(self, stream: Any) -> None:
        await stream.send_message(api.DevicePluginOptions(get_preferred_allocation_available=True))

    async def ListAndWatch(self, stream: Any) -> None:
        for health in ("Healthy", "Unhealthy"):
            topology = api.TopologyInfo(nodes=[api.NUMANode(ID=1)])
            device = api.Device(ID="0000:03:02.0", health=health, topology=topology)
            await stream.send_message(api.ListAndWatchResponse(devices=[device]))

    async def GetPreferredAllocation(self, stream: Any) -> None:
        raise NotImplementedError

    async def Allocate(self, stream: Any) -> None:
        request = await stream.recv_message()
        responses = [
            api.ContainerAllocateResponse(
                envs={"PCIDEVICE": ",".join(each.devices_ids)},
                devices=[api.DeviceSpec(container_path="/dev/vfio/1", host_path="/dev/vfio/1", permissions="rw")],
                cdi_devices=[api.CDIDevice(name="vendor/net=1")],
            )
            for each in request.container_requests
        ]
        await stream.send_message(api.AllocateResponse(container_responses=responses))

    async def PreStartContainer(self, stream: Any) -> None:
        raise NotImplementedError


async def test_a_plugin_registers_and_is_called(tmp_path: Path) -> None:
    server = Server([Plugin()])
    async with FakeKubelet(tmp_path) as kubelet:
        await server.start(path=str(tmp_path / "device-plugins" / "vf.sock"))
        try:
            async with Channel(path=str(tmp_path / "device-plugins" / "kubelet.sock")) as channel:
                request = api.RegisterRequest(version="v1beta1", endpoint="vf.sock", resource_name="intel.com/sriov")
                await deviceplugin_grpc.RegistrationStub(channel).Register(request)
            registered = await kubelet.wait_registered("intel.com/sriov")
            async with kubelet.dial(registered) as plugin:
                async with plugin.ListAndWatch.open() as stream:
                    await stream.send_message(api.Empty(), end=True)
                    health = [each.devices[0].health async for each in stream]
                asked = [api.ContainerAllocateRequest(devices_ids=["a", "b"])]
                answer = await plugin.Allocate(api.AllocateRequest(container_requests=asked))
        finally:
            server.close()
            await server.wait_closed()
    assert health == ["Healthy", "Unhealthy"]
    assert answer.container_responses[0].envs == {"PCIDEVICE": "a,b"}


async def test_another_version_is_refused(tmp_path: Path) -> None:
    async with FakeKubelet(tmp_path) as kubelet, Channel(path=str(tmp_path / "device-plugins/kubelet.sock")) as channel:
        with pytest.raises(GRPCError, match="not supported by kubelet"):
            await deviceplugin_grpc.RegistrationStub(channel).Register(api.RegisterRequest(version="v2"))
        assert kubelet.registered == []


def test_field_numbers() -> None:
    """On the wire, a field is its number: these bytes are what a Go kubelet writes and reads."""
    request = api.RegisterRequest(
        version="v1beta1", endpoint="e", resource_name="r", options=api.DevicePluginOptions(pre_start_required=True)
    )
    assert request.SerializeToString() == b"\x0a\x07v1beta1\x12\x01e\x1a\x01r\x22\x02\x08\x01"
    response = api.ContainerAllocateResponse(
        envs={"k": "v"},
        mounts=[api.Mount(container_path="c", host_path="h", read_only=True)],
        devices=[api.DeviceSpec(container_path="c", host_path="h", permissions="rw")],
        annotations={"a": "b"},
        cdi_devices=[api.CDIDevice(name="n")],
    )
    assert response.SerializeToString() == (
        b"\x0a\x06\x0a\x01k\x12\x01v\x12\x08\x0a\x01c\x12\x01h\x18\x01\x1a\x0a\x0a\x01c\x12\x01h\x1a\x02rw"
        b"\x22\x06\x0a\x01a\x12\x01b\x2a\x03\x0a\x01n"
    )
    info = pluginregistration_pb2.PluginInfo(type="t", name="n", endpoint="e", supported_versions=["1", "2"])
    assert info.SerializeToString() == b"\x0a\x01t\x12\x01n\x1a\x01e\x22\x011\x22\x012"
