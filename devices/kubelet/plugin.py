"""One pool as a device plugin: the gRPC service by which a kubelet follows its offer and takes from it."""

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from grpclib.const import Status
from grpclib.exceptions import GRPCError

from devices.errors import DeviceError
from devices.kubelet import allocate
from devices.kubelet.allocate import Device, Grant
from devices.kubelet.api import deviceplugin_grpc, pluginregistration_grpc, pluginregistration_pb2
from devices.kubelet.api import deviceplugin_pb2 as api
from devices.offers import Bell, Offer

if TYPE_CHECKING:
    from grpclib.server import Stream

logger = logging.getLogger(__name__)

VERSION: Final = "v1beta1"


class DevicePlugin(deviceplugin_grpc.DevicePluginBase):
    """Serves an offer. `streams` is how many kubelets follow it now; `changed` rings when one comes or goes."""

    def __init__(self, offer: Offer, changed: Bell) -> None:
        self._offer = offer
        self._changed = changed
        self.streams = 0
        self._closed = False

    async def close(self) -> None:
        """End all streams, after they have said the offer's last word."""
        self._closed = True
        self._offer.changed.ring()
        while self.streams:
            await self._changed.wait(self._changed.rung)

    async def GetDevicePluginOptions(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802 (gRPC's name)
        """Preferences are ours to have; a container needs no call before it starts."""
        await stream.recv_message()
        await stream.send_message(options())

    async def ListAndWatch(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """All devices, now and after each change, for as long as the kubelet listens."""
        await stream.recv_message()
        offer = self._offer
        self.streams += 1
        self._changed.ring()
        try:
            while True:
                seen = offer.changed.rung
                await stream.send_message(
                    api.ListAndWatchResponse(devices=[_device(d) for d in offer.devices.values()])
                )
                offer.counts.updates += 1
                if self._closed:
                    return
                await offer.changed.wait(seen)
        finally:  # grpclib cancels this when the kubelet resets the stream or its connection breaks
            self.streams -= 1
            self._changed.ring()

    async def GetPreferredAllocation(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """Which of the free devices a container had best be given."""
        request = await _received(stream)
        offer = self._offer
        answers = [
            api.ContainerPreferredAllocationResponse(
                deviceIDs=allocate.preferred(
                    offer.devices,
                    each.available_deviceIDs,
                    each.must_include_deviceIDs,
                    each.allocation_size,
                    preference=offer.preference,
                )
            )
            for each in request.container_requests
        ]
        await stream.send_message(api.PreferredAllocationResponse(container_responses=answers))

    async def Allocate(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """Variables and device nodes for each container that is about to start."""
        request = await _received(stream)
        offer = self._offer
        answers = []
        for each in request.container_requests:
            ids = list(dict.fromkeys(each.devices_ids))
            try:
                grants = await offer.give(ids)
            except DeviceError as error:
                offer.counts.refusals += 1
                logger.error("%s: the kubelet's request for %s is refused: %s", offer.resource, ids, error)
                raise GRPCError(Status.FAILED_PRECONDITION, str(error)[:1000]) from None
            answers.append(_answer(offer.resource, grants))
            offer.counts.allocations += 1
            logger.info("%s: a container gets %s", offer.resource, ", ".join(ids))
        await stream.send_message(api.AllocateResponse(container_responses=answers))

    async def PreStartContainer(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """Nothing to do; the kubelet does not call it, as the options say."""
        await stream.recv_message()
        await stream.send_message(api.PreStartContainerResponse())


class Introduction(pluginregistration_grpc.RegistrationBase):
    """How a plugin introduces itself to a kubelet that found its socket in plugins_registry.

    `asked` rings when it is asked; `refusal` is what the kubelet said when it would not have the plugin, "" otherwise.
    """

    def __init__(self, resource: str, changed: Bell) -> None:
        self._resource = resource
        self._changed = changed
        self.asked = 0
        self.refusal = ""

    async def GetInfo(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """What it is. It serves on this same socket, which the kubelet may know by another path than we do."""
        await stream.recv_message()
        self.asked += 1
        await stream.send_message(
            pluginregistration_pb2.PluginInfo(
                type="DevicePlugin", name=self._resource, endpoint="", supported_versions=[VERSION]
            )
        )
        self._changed.ring()

    async def NotifyRegistrationStatus(self, stream: "Stream[Any, Any]") -> None:  # noqa: N802
        """Whether the kubelet has it now."""
        request = await _received(stream)
        self.refusal = "" if request.plugin_registered else request.error[:500] or "no reason given"
        await stream.send_message(pluginregistration_pb2.RegistrationStatusResponse())
        self._changed.ring()


def options() -> api.DevicePluginOptions:
    """What every plugin of ours can do."""
    return api.DevicePluginOptions(pre_start_required=False, get_preferred_allocation_available=True)


async def _received(stream: "Stream[Any, Any]") -> Any:
    request = await stream.recv_message()
    if request is None:
        raise GRPCError(Status.INVALID_ARGUMENT, "the call carries no request")
    return request


def _device(device: Device) -> api.Device:
    topology = api.TopologyInfo(nodes=[api.NUMANode(ID=device.numa)]) if device.numa >= 0 else None
    return api.Device(ID=device.id, health="Healthy" if device.healthy else "Unhealthy", topology=topology)


def _answer(resource: str, grants: Sequence[Grant]) -> api.ContainerAllocateResponse:
    return api.ContainerAllocateResponse(
        envs=allocate.environment(resource, grants),
        devices=[
            api.DeviceSpec(container_path=spec.container, host_path=spec.host, permissions=allocate.PERMISSIONS)
            for spec in allocate.device_specs(grants)
        ],
        mounts=[
            api.Mount(container_path=spec.container, host_path=spec.host, read_only=True)
            for spec in allocate.mounts(grants)
        ],
    )
