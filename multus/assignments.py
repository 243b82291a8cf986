"""Which devices a pod was given: the kubelet's word, then that of Dynamic Resource Allocation.

The kubelet is asked over PodResources; where that fails, its checkpoint file is read. What either says is in the order
of the pod's containers, sorted within each, so that the same pod gives the same answer every time.
"""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Final, Protocol

import anyio
import anyio.to_thread

from multus.dra import allocated
from multus.errors import Fault, MultusError
from multus.kube.claims import Claims
from multus.kube.objects import Pod

if TYPE_CHECKING:
    from devices.kubelet.allocation import ContainerDevices

logger = logging.getLogger(__name__)

Assigned = Mapping[str, Sequence[tuple[str, Sequence[str]]]]
"""Resource name to (container, its devices), in the order of the pod's containers."""

_KUBELET: Final = 10.0  # seconds, as upstream waits
_CLAIMS: Final = 20.0


class AssignmentError(MultusError):
    """Nobody could say which devices the pod was given; asking again may help."""

    fault: ClassVar[Fault] = Fault.PEER
    retry: ClassVar[bool] = True


class Assignments(Protocol):
    """Tells which devices a pod was given."""

    async def devices(self, pod: Pod, resources: Collection[str]) -> Assigned:
        """Devices of these resources; one that the pod was given nothing of is not in the answer.

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


def _order(pod: Pod, listed: Sequence[str]) -> dict[str, int]:
    """Containers by their place: the pod's own order, else the one of the source."""
    return {name: index for index, name in enumerate(dict.fromkeys([*pod.containers, *listed]))}
