"""Which devices a pod was given: the kubelet's word, then that of Dynamic Resource Allocation; or our own pools'.

The kubelet is asked over PodResources; where that fails, its checkpoint file is read. What either says is in the order
of the pod's containers, sorted within each, so that the same pod gives the same answer every time.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import anyio
import anyio.to_thread

from devices.errors import DeviceError
from multus.dra import allocated
from multus.errors import Fault, MultusError, from_devices
from multus.kube.claims import Claims
from multus.kube.objects import Pod
from multus.networks.devices import Assigned, Wish, shared_out, wished
from multus.sandbox import Sandbox

if TYPE_CHECKING:
    from devices.kubelet.allocation import ContainerDevices
    from devices.ledger import Allocation

logger = logging.getLogger(__name__)

Wishes = Mapping[str, Sequence[Wish]]
"""Resource name to what each network that needs a device of it asks for."""

_KUBELET: Final = 10.0  # seconds, as upstream waits
_CLAIMS: Final = 20.0


class AssignmentError(MultusError):
    """Nobody could say which devices the pod was given; asking again may help."""

    fault: ClassVar[Fault] = Fault.PEER
    retry: ClassVar[bool] = True


class Assignments(Protocol):
    """Tells which devices a pod was given."""

    async def devices(self, pod: Pod, resources: Wishes) -> Assigned:
        """Devices of these resources, each with what the networks wish that need one.

        A resource that the pod was given nothing of is not in the answer.

        :raises MultusError: it cannot be told.
        """
        ...


class NoAssignments:
    """No kubelet, and so no devices."""

    async def devices(self, pod: Pod, resources: Collection[str]) -> Assigned:
        """None."""
        return {}


class KubeletAssignments:
    """Asks the kubelet whose directory is `kubelet_dir`, and `claims` if there is somebody to ask for them.

    `timeout` bounds the question to the kubelet, `claims_timeout` all that are about claims; in seconds.
    """

    def __init__(
        self, kubelet_dir: Path, claims: Claims | None, *, timeout: float = _KUBELET, claims_timeout: float = _CLAIMS
    ) -> None:
        self._directory = kubelet_dir
        self._claims = claims
        self._timeout = timeout
        self._claims_timeout = claims_timeout

    async def devices(self, pod: Pod, resources: Collection[str]) -> Assigned:
        """Devices of these resources.

        :raises AssignmentError: neither PodResources nor the checkpoint could be read, and no claim stands for them.
        :raises ClaimError: a claim does not say what it should. :raises ClusterError: a claim could not be read.
        """
        wanted = frozenset(resources)
        failure: AssignmentError | None = None
        found: dict[str, dict[str, set[str]]] = {}
        try:
            listed = await self._kubelet(pod)
        except AssignmentError as error:
            failure, listed = error, ()
        for container in listed:
            for each in container.devices:
                if each.resource in wanted:
                    found.setdefault(each.resource, {}).setdefault(container.container, set()).update(each.ids)
        for resource, container_name, device in await self._claimed(pod, wanted):
            found.setdefault(resource, {}).setdefault(container_name, set()).add(device)
        if failure is not None:
            if wanted - found.keys():
                raise failure
            logger.warning("%s; claims alone say which devices pod %s/%s has", failure, pod.namespace, pod.name)
        order = _order(pod, [container.container for container in listed])
        return {
            resource: [
                (name, tuple(sorted(holders[name])))
                for name in sorted(holders, key=lambda name: (order.get(name, len(order)), name))
                if holders[name]
            ]
            for resource, holders in found.items()
        }

    async def _kubelet(self, pod: Pod) -> "tuple[ContainerDevices, ...]":
        """What the kubelet's device plugins gave the pod, from the first source that says.

        :raises AssignmentError: none does.
        """
        # Here, so that a daemon without a kubelet goes without gRPC.
        from devices.kubelet.checkpoint import FILE, read_checkpoint
        from devices.kubelet.errors import KubeletError
        from devices.kubelet.podresources import SOCKET, PodResources

        try:
            answer = await PodResources(self._directory / SOCKET, timeout=self._timeout).pod(pod.namespace, pod.name)
        except KubeletError as error:
            first = error
            logger.warning("pod %s/%s: %s; reading the kubelet's checkpoint", pod.namespace, pod.name, error)
        else:
            return answer.containers if answer is not None else ()
        # The kubelet knows a static pod by another uid than the API server, and files its devices under that.
        uid = "" if pod.static else pod.uid
        try:
            return await anyio.to_thread.run_sync(read_checkpoint, self._directory / FILE, uid)
        except KubeletError as second:
            raise AssignmentError(
                f"it cannot be told which devices pod {pod.namespace}/{pod.name} was given: {first.message}; "
                f"{second.message}",
                hint=first.hint or second.hint,
            ) from None

    async def _claimed(self, pod: Pod, wanted: frozenset[str]) -> list[tuple[str, str, str]]:
        """(resource, container, device) from the pod's claims."""
        if self._claims is None or not (pod.claims or pod.extended):
            return []
        try:
            with anyio.fail_after(self._claims_timeout):
                return await allocated(self._claims, pod, wanted)
        except TimeoutError:
            raise AssignmentError(
                f"the resource claims of pod {pod.namespace}/{pod.name} were not read within {self._claims_timeout:g} s"
            ) from None


class Pools(Protocol):
    """Gives devices out: the device manager."""

    @property
    def allocations(self) -> "Sequence[Allocation]": ...
    async def allocate(self, resource: str, count: int, *, owner: str, wanted: Sequence[str]) -> tuple[str, ...]: ...
    async def release(self, owner: str) -> tuple[str, ...]: ...


class PoolAssignments:
    """Devices from the node's own pools, for a node without a kubelet: a pod has them for as long as it has networks.

    `sandboxes` lists what is attached. A pod that was given devices and then not attached keeps them for `grace`
    seconds, for the runtime's next try.
    """

    def __init__(
        self,
        pools: Pools,
        sandboxes: Callable[[], Awaitable[Sequence[Sandbox]]],
        *,
        grace: float = 120.0,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._pools = pools
        self._sandboxes = sandboxes
        self._grace = grace
        self._clock = clock
        self._asked: dict[str, float] = {}

    async def devices(self, pod: Pod, resources: Wishes) -> Assigned:
        """As many devices of each resource as there are networks that need one; asked again, the same.

        The device that a network wishes is among them, and the container that it names has one.

        :raises MultusError: a pool has not as many, or not that one, or there is no such pool.
        """
        owner = pod_owner(pod.namespace, pod.name, pod.uid)
        self._asked[owner] = self._clock()
        assigned: dict[str, Sequence[tuple[str, Sequence[str]]]] = {}
        with from_devices():
            for resource, wishes in sorted(resources.items()):
                given = await self._allocate(resource, len(wishes), owner, wished(wishes))
                assigned[resource] = shared_out(pod.containers, given, wishes)
        return assigned

    async def removed(self, sandbox: Sandbox) -> None:
        """Take back what the pod of a sandbox had, unless it has another one, or is being attached anew."""
        owner = pod_owner(sandbox.pod_namespace, sandbox.pod_name, sandbox.pod_uid)
        if (sandbox.created or self._clock()) < self._asked.get(owner, 0.0):
            return
        try:
            if owner not in await self._attached():
                await self._release(owner)
        except (MultusError, DeviceError) as error:
            logger.error("devices of %s are taken back later: %s", owner, error)

    async def collect(self) -> None:
        """Take back what is given to pods that are not attached and are not about to be.

        :raises MultusError: the journal cannot be read or written.
        """
        attached, limit = await self._attached(), self._clock() - self._grace
        for owner in {each.owner for each in self._pools.allocations} - attached:
            if self._asked.get(owner, 0.0) < limit and owner.startswith(_POD):
                await self._release(owner)

    async def _allocate(self, resource: str, count: int, owner: str, wanted: Sequence[str]) -> tuple[str, ...]:
        try:
            return await self._pools.allocate(resource, count, owner=owner, wanted=wanted)
        except DeviceError as error:
            if not error.retry:
                raise
        await self.collect()
        return await self._pools.allocate(resource, count, owner=owner, wanted=wanted)

    async def _release(self, owner: str) -> None:
        with from_devices():
            await self._pools.release(owner)
        self._asked.pop(owner, None)

    async def _attached(self) -> set[str]:
        found = await self._sandboxes()
        return {pod_owner(each.pod_namespace, each.pod_name, each.pod_uid) for each in found}


_POD: Final = "pod "


def pod_owner(namespace: str, name: str, uid: str) -> str:
    """Whom the pools know a pod by; people who take devices by hand have other names."""
    return f"{_POD}{namespace}/{name} {uid}".rstrip()


def _order(pod: Pod, listed: Sequence[str]) -> dict[str, int]:
    """Containers by their place: the pod's own order, else the one of the source."""
    return {name: index for index, name in enumerate(dict.fromkeys([*pod.containers, *listed]))}
