"""A kubelet as far as devices go: PodResources and device plugin registration, on real sockets in a directory."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import anyio
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError
from grpclib.server import Server

from devices.kubelet.api import deviceplugin_grpc, podresources_grpc
from devices.kubelet.api import deviceplugin_pb2 as plugin_api
from devices.kubelet.api import podresources_pb2 as api

Containers = Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]]
"""Name of a container, and its resources with their devices; a resource may come twice, as one entry a NUMA node."""

Get = Literal["served", "unimplemented", "disabled", "of another pod", "empty"]


class FakeKubelet:
    """`async with FakeKubelet(directory) as kubelet`: then `directory` is what /var/lib/kubelet is on a node.

    `get`: how it treats PodResources Get. `limited`: how many calls it turns away for there being too many. `hanging`:
    it takes calls and answers none. `failing`: it answers every PodResources call with this status.
    """

    def __init__(self, directory: Path, *, get: Get = "served") -> None:
        self.directory = directory
        self.pods: dict[tuple[str, str], Containers] = {}
        self.allocatable: Mapping[str, Sequence[str]] = {}
        self.calls: list[str] = []
        self.registered: list[plugin_api.RegisterRequest] = []
        self.get: Get = get
        self.limited = 0
        self.hanging = False
        self.failing: Status | None = None
        self._registration = anyio.Event()
        self._stack = AsyncExitStack()

    async def __aenter__(self) -> "FakeKubelet":
        await self._serve("pod-resources", _Lister(self))
        await self._serve("device-plugins", _Registration(self))
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    async def wait_registered(self, resource: str) -> plugin_api.RegisterRequest:
        """The latest registration of that resource, waited for."""
        while True:
            event = self._registration
            for request in reversed(self.registered):
                if request.resource_name == resource:
                    return request
            await event.wait()

    @asynccontextmanager
    async def dial(self, request: plugin_api.RegisterRequest) -> AsyncIterator[deviceplugin_grpc.DevicePluginStub]:
        """A connection to a plugin that registered, as a kubelet makes it."""
        async with Channel(path=str(self.directory / "device-plugins" / request.endpoint)) as channel:
            yield deviceplugin_grpc.DevicePluginStub(channel)

    def note(self, request: plugin_api.RegisterRequest) -> None:
        """A plugin registers."""
        self.registered.append(request)
        self._registration.set()
        self._registration = anyio.Event()

    async def _serve(self, folder: str, service: Any) -> None:
        path = self.directory / folder / "kubelet.sock"
        path.parent.mkdir(parents=True, exist_ok=True)
        server = Server([service])
        await server.start(path=str(path))
        self._stack.push_async_callback(server.wait_closed)
        self._stack.callback(server.close)


class _Lister(podresources_grpc.PodResourcesListerBase):
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    async def _received(self, stream: Any, method: str) -> Any:
        kubelet = self._kubelet
        request = await stream.recv_message()
        kubelet.calls.append(method)
        if kubelet.hanging:
            await anyio.sleep_forever()
        if kubelet.limited > 0:
            kubelet.limited -= 1
            raise GRPCError(Status.RESOURCE_EXHAUSTED, "rejected by rate limit")
        if kubelet.failing is not None:
            raise GRPCError(kubelet.failing, "it was told to fail")
        return request

    async def List(self, stream: Any) -> None:
        await self._received(stream, "List")
        pods = [_pod(*key, containers) for key, containers in self._kubelet.pods.items()]
        await stream.send_message(api.ListPodResourcesResponse(pod_resources=pods))

    async def GetAllocatableResources(self, stream: Any) -> None:
        await self._received(stream, "GetAllocatableResources")
        devices = [
            api.ContainerDevices(resource_name=resource, device_ids=[device])
            for resource, ids in self._kubelet.allocatable.items()
            for device in ids
        ]
        await stream.send_message(api.AllocatableResourcesResponse(devices=devices))

    async def Get(self, stream: Any) -> None:
        request = await self._received(stream, "Get")
        key = (request.pod_namespace, request.pod_name)
        answer = api.GetPodResourcesResponse()
        match self._kubelet.get:
            case "unimplemented":
                raise GRPCError(Status.UNIMPLEMENTED, "unknown method Get for service v1.PodResourcesLister")
            case "disabled":
                raise GRPCError(Status.UNKNOWN, "PodResources API Get method disabled")
            case "of another pod":
                answer = api.GetPodResourcesResponse(pod_resources=_pod("other", "pod", []))
            case "served":
                if key not in self._kubelet.pods:
                    raise GRPCError(Status.UNKNOWN, f"pod {key[1]} in namespace {key[0]} not found")
                answer = api.GetPodResourcesResponse(pod_resources=_pod(*key, self._kubelet.pods[key]))
        await stream.send_message(answer)


class _Registration(deviceplugin_grpc.RegistrationBase):
    def __init__(self, kubelet: FakeKubelet) -> None:
        self._kubelet = kubelet

    async def Register(self, stream: Any) -> None:
        request = await stream.recv_message()
        assert request is not None
        if request.version != "v1beta1":
            raise GRPCError(Status.UNKNOWN, f"requested API version {request.version!r} is not supported by kubelet")
        self._kubelet.note(request)
        await stream.send_message(plugin_api.Empty())


def _pod(namespace: str, name: str, containers: Containers) -> api.PodResources:
    return api.PodResources(
        namespace=namespace,
        name=name,
        containers=[
            api.ContainerResources(
                name=container,
                devices=[api.ContainerDevices(resource_name=resource, device_ids=ids) for resource, ids in devices],
            )
            for container, devices in containers
        ],
    )
