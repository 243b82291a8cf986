"""PodResources: the kubelet's own word on which container holds which device.

Each call makes a connection of its own: on a Unix socket it costs less than telling whether an old one has survived a
restart of the kubelet.
"""

import logging
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import anyio
from grpclib.client import Channel, UnaryUnaryMethod
from grpclib.const import Status
from grpclib.encoding.proto import ProtoCodec
from grpclib.exceptions import GRPCError

from devices.kubelet.allocation import ContainerDevices, Devices, PodDevices, gathered
from devices.kubelet.api import podresources_grpc
from devices.kubelet.api import podresources_pb2 as api
from devices.kubelet.errors import KubeletError

if TYPE_CHECKING:
    from google.protobuf.message import Message

logger = logging.getLogger(__name__)

SOCKET: Final = "pod-resources/kubelet.sock"
"""Below the kubelet's directory."""

TIMEOUT: Final = 10.0
MAX_MESSAGE: Final = 16 * 1024 * 1024

_PAUSE: Final = 0.05  # seconds; the kubelet lets 100 calls a second pass, and 10 at once

_A = TypeVar("_A", bound="Message")
_R = TypeVar("_R", bound="Message")


class PodResources:
    """Asks the kubelet at `socket`. `timeout` in seconds bounds each call; an answer has `limit` bytes at most."""

    def __init__(self, socket: Path, *, timeout: float = TIMEOUT, limit: int = MAX_MESSAGE) -> None:
        self._socket = socket
        self._timeout = timeout
        self._limit = limit

    async def pod(self, namespace: str, name: str) -> PodDevices | None:
        """One pod, None when the kubelet knows none of that name.

        Asks for that pod alone where the kubelet can do so (1.27, and it can be switched off), else for all of them.

        :raises KubeletError: no answer in time, or none that can be used.
        """
        if not namespace or not name:
            raise KubeletError(
                f"PodResources was asked for pod {namespace!r:.80}/{name!r:.80}", hint="both must be given"
            )
        deadline = anyio.current_time() + self._timeout
        request = api.GetPodResourcesRequest(pod_name=name, pod_namespace=namespace)
        try:
            answer = await self._call("Get", request, api.GetPodResourcesResponse, deadline)
        except KubeletError as error:
            if not error.unsupported:
                raise
            # Unimplemented, disabled and "not found" all come as words of an error: the list tells them apart.
            logger.debug("%s; asking for all pods instead", error)
        else:
            if (answer.pod_resources.namespace, answer.pod_resources.name) != (namespace, name):
                raise KubeletError(f"the kubelet at {self._socket} answered with another pod than {namespace}/{name}")
            return _pod(answer.pod_resources)
        everything = await self._call("List", api.ListPodResourcesRequest(), api.ListPodResourcesResponse, deadline)
        found = (pod for pod in everything.pod_resources if (pod.namespace, pod.name) == (namespace, name))
        return next((_pod(pod) for pod in found), None)

    async def pods(self) -> tuple[PodDevices, ...]:
        """Every pod of the node.

        :raises KubeletError: no answer in time, or none that can be used.
        """
        deadline = anyio.current_time() + self._timeout
        answer = await self._call("List", api.ListPodResourcesRequest(), api.ListPodResourcesResponse, deadline)
        return tuple(_pod(pod) for pod in answer.pod_resources)

    async def allocatable(self) -> tuple[Devices, ...]:
        """Every device that the node has to give, given out or not.

        :raises KubeletError: no answer in time, or none that can be used; `unsupported` before Kubernetes 1.21.
        """
        deadline = anyio.current_time() + self._timeout
        request, kind = api.AllocatableResourcesRequest(), api.AllocatableResourcesResponse
        answer = await self._call("GetAllocatableResources", request, kind, deadline)
        return gathered((entry.resource_name, entry.device_ids) for entry in answer.devices)

    async def _call(self, method: str, request: _R, kind: type[_A], deadline: float) -> _A:
        """One call, again for as long as the kubelet only says that there are too many of them."""
        while True:
            left = deadline - anyio.current_time()
            try:
                with anyio.fail_after(max(left, 0.0)):
                    return await self._once(method, request, kind, left)
            except TimeoutError:
                raise KubeletError(
                    f"the kubelet at {self._socket} did not answer {method} within {self._timeout:g} s",
                    hint="is the kubelet overloaded, or stopped with its socket left behind?",
                ) from None
            except GRPCError as error:
                if not _limited(error) or deadline - anyio.current_time() <= _PAUSE:
                    raise self._refused(method, error) from None
            except Exception as error:
                # Whatever it is that speaks there: grpclib lets OSErrors, h2's errors and failed assertions through.
                raise KubeletError(
                    f"no PodResources from {self._socket}: {type(error).__name__}: {str(error)[:200]}",
                    hint="is the kubelet running, and its directory mounted into this pod?",
                ) from None
            await anyio.sleep(_PAUSE)

    async def _once(self, method: str, request: _R, kind: type[_A], left: float) -> _A:
        """One call, in a task of its own.

        When its connection breaks, grpclib cancels the task that calls and makes an error of that, but leaves the task
        counted as cancelled: no cancel scope around it would ever catch its own cancellation again.
        """
        answers: list[_A] = []
        errors: list[Exception] = []

        async def call() -> None:
            try:
                async with Channel(path=str(self._socket), codec=_Bounded(self._limit)) as channel:
                    stub = podresources_grpc.PodResourcesListerStub(channel)
                    unary: UnaryUnaryMethod[_R, _A] = getattr(stub, method)
                    answers.append(await unary(request, timeout=max(left, 0.001)))
            except Exception as error:
                errors.append(error)

        async with anyio.create_task_group() as group:
            group.start_soon(call)
        if errors:
            raise errors[0]
        return answers[0]

    def _refused(self, method: str, error: GRPCError) -> KubeletError:
        words = f"{error.status.name}: {(error.message or '')[:200]}"
        # Go code that returns a plain error comes out as UNKNOWN.
        absent = error.status in (Status.UNIMPLEMENTED, Status.UNKNOWN, Status.NOT_FOUND)
        return KubeletError(f"the kubelet at {self._socket} refused {method}: {words}", unsupported=absent)


class _Bounded(ProtoCodec):
    """Reads no message that is too large. Its bytes are there by then: grpclib has no limit of its own."""

    def __init__(self, limit: int) -> None:
        self._limit = limit

    def decode(self, data: bytes, message_type: Any) -> Any:
        if len(data) > self._limit:
            raise ValueError(f"an answer of {len(data)} bytes, {self._limit} at most")
        return super().decode(data, message_type)


def _limited(error: GRPCError) -> bool:
    return error.status is Status.RESOURCE_EXHAUSTED and "rate limit" in (error.message or "")


def _pod(pod: api.PodResources) -> PodDevices:
    return PodDevices(
        namespace=pod.namespace, name=pod.name, containers=tuple(_container(each) for each in pod.containers)
    )


def _container(container: api.ContainerResources) -> ContainerDevices:
    entries: Iterable[tuple[str, list[str]]] = (
        (each.resource_name, list(each.device_ids)) for each in container.devices
    )
    return ContainerDevices(container=container.name, devices=gathered(entries))
