"""A kubelet as far as devices go: PodResources and device plugin registration, on real sockets in a directory."""

import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import anyio
from grpclib.client import Channel
from grpclib.const import Status
from grpclib.exceptions import GRPCError, StreamTerminatedError
from grpclib.server import Server

from devices.kubelet.api import deviceplugin_grpc, pluginregistration_grpc, podresources_grpc
from devices.kubelet.api import deviceplugin_pb2 as plugin_api
from devices.kubelet.api import pluginregistration_pb2 as introduction_api
from devices.kubelet.api import podresources_pb2 as api

Containers = Sequence[tuple[str, Sequence[tuple[str, Sequence[str]]]]]
"""Name of a container, and its resources with their devices; a resource may come twice, as one entry a NUMA node."""

Get = Literal["served", "unimplemented", "disabled", "of another pod", "empty"]


class Follower:
    """What a kubelet knows of a plugin that it follows: device to health, and to NUMA node (None without topology)."""

    def __init__(self) -> None:
        self.health: dict[str, str] = {}
        self.numa: dict[str, int | None] = {}
        self.lists = 0
        self.ended = False
        self._news = anyio.Event()

    async def until(self, holds: "Callable[[Follower], bool]", *, limit: float = 10.0) -> None:
        """Wait until something holds, for `limit` seconds at most."""
        with anyio.fail_after(limit):
            while not holds(self):
                await self._news.wait()

    def heard(self, answer: plugin_api.ListAndWatchResponse | None) -> None:
        """A list, or None for the end of them."""
        if answer is None:
            self.ended = True
        else:
            self.lists += 1
            self.health = {device.ID: device.health for device in answer.devices}
            self.numa = {
                device.ID: device.topology.nodes[0].ID if device.HasField("topology") else None
                for device in answer.devices
            }
        self._news.set()
        self._news = anyio.Event()


class FakeKubelet:
    """`async with FakeKubelet(directory) as kubelet`: then `directory` is what /var/lib/kubelet is on a node.

    `refusing`: with which words it turns plugins away.
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
        self.refusing = ""
        self._registration = anyio.Event()
        self._stack = AsyncExitStack()
        self._plugins = AsyncExitStack()

    async def __aenter__(self) -> "FakeKubelet":
        self._stack.push_async_callback(self.stop)
        await self._serve("pod-resources", _Lister(self), self._stack)
        await self.start()
        return self

    async def start(self) -> None:
        """Begin to take device plugins, as after a boot: whatever was in their directory is gone."""
        directory = self.directory / "device-plugins"
        directory.mkdir(parents=True, exist_ok=True)
        for path in directory.iterdir():
            if path.name != "kubelet_internal_checkpoint":
                path.unlink()
        self.registered.clear()
        await self._serve("device-plugins", _Registration(self), self._plugins)

    async def stop(self) -> None:
        """Take no more device plugins; the socket stays behind, as that of a kubelet that was killed."""
        await self._plugins.aclose()
        path = self.directory / "device-plugins" / "kubelet.sock"
        if path.parent.exists() and not path.exists():  # from Python 3.13 on, a server takes its socket's file with it
            with socket.socket(socket.AF_UNIX) as dead:
                dead.bind(str(path))

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

    @asynccontextmanager
    async def follow(
        self, request: plugin_api.RegisterRequest, *, folder: str = "device-plugins"
    ) -> AsyncIterator[Follower]:
        """ListAndWatch of a plugin, until the end of the block."""
        follower = Follower()

        async def listen() -> None:
            # A task of its own, whose cancellations stay its own when the connection breaks.
            try:
                async with (
                    Channel(path=str(self.directory / folder / request.endpoint)) as channel,
                    deviceplugin_grpc.DevicePluginStub(channel).ListAndWatch.open() as stream,
                ):
                    await stream.send_message(plugin_api.Empty(), end=True)
                    async for answer in stream:
                        follower.heard(answer)
            except (GRPCError, StreamTerminatedError, OSError):
                pass
            follower.heard(None)

        async with anyio.create_task_group() as group:
            group.start_soon(listen)
            yield follower
            group.cancel_scope.cancel()

    async def introduce(self, socket: Path, *, refusal: str = "") -> introduction_api.PluginInfo:
        """Ask the plugin on a socket in plugins_registry who it is, and tell it whether it is taken."""
        async with Channel(path=str(socket)) as channel:
            stub = pluginregistration_grpc.RegistrationStub(channel)
            info: introduction_api.PluginInfo = await stub.GetInfo(introduction_api.InfoRequest())
            status = introduction_api.RegistrationStatus(plugin_registered=not refusal, error=refusal)
            await stub.NotifyRegistrationStatus(status)
        return info

    def note(self, request: plugin_api.RegisterRequest) -> None:
        """A plugin registers."""
        self.registered.append(request)
        self._registration.set()
        self._registration = anyio.Event()

    async def _serve(self, folder: str, service: Any, stack: AsyncExitStack) -> None:
        path = self.directory / folder / "kubelet.sock"
        path.parent.mkdir(parents=True, exist_ok=True)
        server = Server([service])
        await server.start(path=str(path))
        stack.push_async_callback(server.wait_closed)
        stack.callback(server.close)


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
        if self._kubelet.refusing:
            raise GRPCError(Status.UNKNOWN, self._kubelet.refusing)
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
