"""What the daemon asks of a cluster, whichever kind stands behind it: an API server, a folder of YAML, or none."""

from typing import Literal, Protocol

import anyio
import anyio.abc

from multus.kube.errors import ClusterError, NotFoundError, missing_nad
from multus.kube.objects import NAD, Pod

__all__ = ["Cluster", "ClusterError", "EventKind", "NoCluster", "NotFound", "NotFoundError"]

NotFound = NotFoundError

EventKind = Literal["Normal", "Warning"]


class Cluster(Protocol):
    """Pods and NetworkAttachmentDefinitions, read from memory where that is right, and what is told about them."""

    @property
    def is_current(self) -> bool:
        """Whether what is asked for now is answered from memory, as a rule: nothing is won by asking concurrently."""
        ...

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        """The pod; when `uid` is given, that very one (a static pod's may differ: the API server knows its mirror).

        :raises NotFoundError: only after a live answer. :raises ClusterError: no answer, or another uid.
        """
        ...

    async def nad(self, namespace: str, name: str) -> NAD:
        """The NetworkAttachmentDefinition.

        :raises NotFoundError: only after a live answer. :raises ClusterError: no answer.
        """
        ...

    async def set_network_status(self, pod: Pod, status: str) -> None:
        """Write the network-status annotation: at most one request, none when it already says so; a gone pod is fine.

        :raises ClusterError: it could not be written within its bound; whether that matters is the caller's business.
        """
        ...

    async def event(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        """Tell people something about the pod. Bounded; never raises; lost with a log line when nobody listens."""
        ...

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep the caches until cancelled; reports started when they are filled, or after a bounded wait."""
        ...


class NoCluster:
    """No API server and no folder: every pod exists and asks for nothing; there are no NADs."""

    is_current = True

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        """A pod without annotations."""
        return Pod(namespace=namespace, name=name, uid=uid)

    async def nad(self, namespace: str, name: str) -> NAD:
        """Never there."""
        raise missing_nad(namespace, name, hint="no cluster is configured: set kubeconfig or manifests")

    async def set_network_status(self, pod: Pod, status: str) -> None:
        """Nobody to tell."""

    async def event(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        """Nobody to tell."""

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Nothing to keep; stays, as the others do, until cancelled."""
        task_status.started()
        await anyio.sleep_forever()
