"""From a request to a plan: the pod, its networks and its devices are looked up here, all at once.

Whatever is not found becomes a refusal in the plan, so that `multusctl explain` shows all of them and not just the first.
"""

from collections.abc import Callable, Sequence
from typing import ClassVar

import anyio
import anyio.to_thread
import msgspec

from multus import confdir
from multus.assignments import Assignments
from multus.cni.conf import NetworkConf, parse_conf, refuse_recursion, with_cni_version
from multus.cni.errors import CNIError, Code
from multus.cni.request import PodRef, Request, pod_ref
from multus.errors import Fault, MultusError
from multus.kube.cluster import Cluster, ClusterError, NotFoundError
from multus.kube.objects import DEFAULT_NETWORK, NAD, NETWORKS, Pod
from multus.networks.devices import DeviceShare
from multus.networks.isolation import check_isolation
from multus.networks.nad import resolve_nad
from multus.networks.selection import Selection, parse_default_network, parse_selections
from multus.plan import Origin, Plan, Wanted, make_plan
from multus.sandbox import Sandbox, State
from multus.settings import NetConf


class PodGoneError(MultusError):
    """The API server says that the pod does not exist (any more)."""

    fault: ClassVar[Fault] = Fault.PEER


class Resolver:
    """Looks things up; changes nothing."""

    def __init__(
        self, *, cluster: Cluster, assignments: Assignments, files: confdir.Files, sequential: Callable[[], bool]
    ) -> None:
        self._cluster = cluster
        self._assignments = assignments
        self._files = files
        self._sequential = sequential

    async def plan(self, request: Request, net: NetConf) -> tuple[Pod, Plan]:
        """The pod and the plan for its networks, refusals included.

        :raises PodGoneError: when the cluster knows no such pod.
        """
        reference = pod_ref(request.args)
        pod = await self._pod(reference, net)
        wanted = await self.wanted(pod, net)
        plan = make_plan(
            wanted,
            container_id=request.container_id,
            ifname=request.ifname,
            pod=reference,
            runtime_args=request.args,
            runtime=net.runtime_config,
            devices=await self._devices(pod, wanted),
            sequential=self._sequential(),
        )
        return pod, plan
