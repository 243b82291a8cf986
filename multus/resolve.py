"""From a request to a plan: the pod, its networks and its devices are looked up here, all at once.

Whatever is not found becomes a refusal in the plan, so that `multusctl explain` shows all of them and not just the
first. What could not be asked (an API server that is away) is an error: asking later may give another answer.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import ClassVar

import anyio
import anyio.to_thread
import msgspec

from multus import confdir
from multus.assignments import Assignments
from multus.cni.conf import ConfError, NetworkConf, parse_conf, refuse_recursion, with_cni_version
from multus.cni.request import PodRef, Request, pod_ref
from multus.errors import Fault, MultusError
from multus.kube.cluster import Cluster, ClusterError, NotFoundError
from multus.kube.objects import DEFAULT_NETWORK, NETWORKS, Pod
from multus.networks.devices import DeviceShare, Wish
from multus.networks.isolation import check_isolation
from multus.networks.nad import resolve_nad
from multus.networks.selection import Selection, parse_default_network, parse_selections
from multus.plan import Origin, Plan, Wanted, make_plan
from multus.sandbox import Sandbox, State
from multus.settings import NetConf
from multus.timeline import span

logger = logging.getLogger(__name__)


_REBUILD = 3.0  # seconds to find out what a container that nobody knows may have had


class PodGoneError(MultusError):
    """The API server says that the pod does not exist (any more)."""

    fault: ClassVar[Fault] = Fault.PEER


class Resolver:
    """Looks things up; changes nothing."""

    def __init__(
        self,
        *,
        cluster: Cluster,
        assignments: Assignments,
        files: confdir.Files,
        sequential: Callable[[], bool],
        device_info_dir: str,
    ) -> None:
        self._cluster = cluster
        self._assignments = assignments
        self._files = files
        self._sequential = sequential
        self._device_info_dir = device_info_dir

    async def plan(self, request: Request, net: NetConf) -> tuple[Pod, Plan]:
        """The pod and the plan for its networks, refusals included.

        :raises PodGoneError: when the cluster knows no such pod.
        :raises ClusterError: when it could not be asked, or the pod is another one of that name.
        """
        with span("resolve"):
            pod = await self._pod(pod_ref(request.args))
            wanted = await self.wanted(pod, net)
            share = await self._devices(pod, wanted)
        with span("plan"):
            return pod, self._make(request, net, wanted, share)

    async def default_network(self, net: NetConf) -> NetworkConf:
        """The cluster's default network.

        :raises MultusError: when there is none by that name, or it cannot be read.
        """
        found = await self._default(net)
        if found.conf is None:
            raise ConfError(found.refusal)
        return found.conf

    async def rebuild(self, request: Request, net: NetConf, boot_id: str) -> Sandbox | None:
        """What a container's DEL has to undo when nothing is recorded of it: as much as can still be found out.

        A network that cannot be found any more is left out with a warning: a DEL that failed for it would fail for
        ever.
        """
        reference = pod_ref(request.args) or PodRef(namespace="", name="")
        pod = Pod(namespace=reference.namespace, name=reference.name, uid=reference.uid)
        wanted: list[Wanted] = []
        share = DeviceShare({})
        try:
            # A DEL does not wait for an API server as an ADD does: most of these never were attached at all.
            with anyio.fail_after(_REBUILD):
                pod = await self._pod(reference)
        except (MultusError, TimeoutError) as error:
            logger.info("DEL of container %s goes on without its pod: %s", request.container_id, error)
        try:
            with anyio.fail_after(_REBUILD):
                wanted = await self.wanted(pod, net, tolerant=True)
                share = await self._devices(pod, wanted)
        except (MultusError, TimeoutError) as error:
            logger.warning("DEL of container %s goes on with what is known: %s", request.container_id, error)
        plan = self._make(request, net, wanted, share, tolerant=True)
        for refusal in plan.refusals:
            logger.warning("DEL of container %s: left out: %s", request.container_id, refusal)
        if not plan.attachments:
            return None
        return Sandbox(
            container_id=request.container_id,
            ifname=request.ifname,
            state=State.DELETING,
            netns=request.netns,
            netns_id="",
            boot_id=boot_id,
            pod_namespace=pod.namespace,
            pod_name=pod.name,
            pod_uid=pod.uid,
            attachments=tuple(item.attachment for item in plan.attachments),
        )

    async def wanted(self, pod: Pod, net: NetConf, *, tolerant: bool = False) -> list[Wanted]:
        """Every network of the pod in order of position, looked up concurrently.

        `tolerant`: what cannot be asked now is a refusal as well.
        """
        lookups: list[Callable[[], Awaitable[Wanted | None]]] = [lambda: self._first(pod, net)]
        if net.cluster_network:
            if pod.namespace not in net.system_namespaces:
                lookups += [_later(self._named, name, Origin.CLUSTER_WIDE, net) for name in net.default_networks]
        else:
            lookups += [
                _later(self._inline, data, position, Origin.DELEGATE, net)
                for position, data in enumerate(net.delegates)
                if position > 0
            ]
        try:
            chosen = parse_selections(pod.networks, pod.namespace)
        except MultusError as error:
            refused = Wanted(origin=Origin.POD, network=NETWORKS, refusal=str(error))
            lookups.append(_later(_just, refused))
        else:
            lookups += [_later(self._selected, each, Origin.POD, pod, net) for each in chosen]
        if net.auxiliary_cni_chain_name and "/" in net.cluster_network:
            lookups.append(lambda: self._auxiliary(net))
        return await _all(lookups, tolerant=tolerant, concurrently=not self._cluster.is_current)

    def _make(
        self, request: Request, net: NetConf, wanted: Sequence[Wanted], share: DeviceShare, *, tolerant: bool = False
    ) -> Plan:
        return make_plan(
            wanted,
            container_id=request.container_id,
            ifname=request.ifname,
            pod=pod_ref(request.args),
            runtime_args=request.args,
            runtime=net.runtime_config,
            devices=share,
            sequential=self._sequential(),
            device_info_dir=self._device_info_dir,
            tolerant=tolerant,
        )

    async def _pod(self, reference: PodRef | None) -> Pod:
        if reference is None or not reference.name:
            return Pod(namespace="", name="")  # a runtime other than a kubelet's: the node's networks, and no others
        try:
            return await self._cluster.pod(reference.namespace, reference.name, uid=reference.uid)
        except NotFoundError as error:
            raise PodGoneError(str(error)) from error

    async def _devices(self, pod: Pod, wanted: Sequence[Wanted]) -> DeviceShare:
        wishes: dict[str, list[Wish]] = {}
        for want in wanted:
            if want.resource:
                chosen = want.selection
                wish = Wish(device_id=chosen.device_id, container=chosen.container) if chosen else Wish()
                wishes.setdefault(want.resource, []).append(wish)
        return DeviceShare(await self._assignments.devices(pod, wishes) if wishes else {})

    async def _first(self, pod: Pod, net: NetConf) -> Wanted:
        """The network that is eth0: the pod may ask for another than the cluster's."""
        if not pod.default_network.strip():
            return await self._default(net)
        try:
            selection = parse_default_network(pod.default_network, net.multus_namespace)
        except MultusError as error:
            return Wanted(origin=Origin.OVERRIDE, network=DEFAULT_NETWORK, refusal=str(error))
        return await self._selected(selection, Origin.OVERRIDE, pod, net)

    async def _default(self, net: NetConf) -> Wanted:
        if net.cluster_network:
            return await self._named(net.cluster_network, Origin.DEFAULT, net)
        return await self._inline(net.delegates[0], 0, Origin.DEFAULT, net)

    async def _inline(self, data: bytes, position: int, origin: Origin, net: NetConf) -> Wanted:
        where = f"delegates[{position}] of the CNI configuration"
        try:
            conf = _complete(parse_conf(data, where=where), net)
        except MultusError as error:
            return Wanted(origin=origin, network=where, refusal=str(error))
        return Wanted(origin=origin, network=conf.name, conf=conf, found=where)

    async def _named(self, value: str, origin: Origin, net: NetConf) -> Wanted:
        """clusterNetwork and each of defaultNetworks: a NAD, else a conf's name; with a slash, a file or directory."""
        try:
            if "/" in value:
                on_disk = await anyio.to_thread.run_sync(self._files.cluster_network, value)
            else:
                try:
                    return await self._nad(net.multus_namespace, value, origin, net)
                except NotFoundError as absent:
                    try:
                        on_disk = await anyio.to_thread.run_sync(self._files.by_name, net.conf_dir, value)
                    except MultusError as error:
                        return Wanted(
                            origin=origin, network=value, refusal=f"cannot find network: {absent}; nor a file: {error}"
                        )
            conf = _complete(on_disk.conf, net)
            return Wanted(origin=origin, network=conf.name, conf=conf, found=on_disk.path)
        except ClusterError as error:
            if error.retry:
                raise
            return Wanted(origin=origin, network=value, refusal=str(error))
        except MultusError as error:
            return Wanted(origin=origin, network=value, refusal=str(error))

    async def _selected(self, selection: Selection, origin: Origin, pod: Pod, net: NetConf) -> Wanted:
        network = f"{selection.namespace}/{selection.name}"
        try:
            check_isolation(
                pod_namespace=pod.namespace,
                target_namespace=selection.namespace,
                enabled=net.namespace_isolation,
                # Upstream lets default-network name any namespace; ours is held to the same rule, less the namespace
                # that the administrator keeps such networks in.
                global_namespaces=(*net.global_namespaces, *((net.multus_namespace,) * (origin is Origin.OVERRIDE))),
            )
            found = await self._nad(selection.namespace, selection.name, origin, net)
        except ClusterError as error:
            if error.retry:
                raise
            return Wanted(origin=origin, network=network, selection=selection, refusal=str(error))
        except MultusError as error:
            return Wanted(origin=origin, network=network, selection=selection, refusal=str(error))
        return msgspec.structs.replace(found, selection=selection)

    async def _nad(self, namespace: str, name: str, origin: Origin, net: NetConf) -> Wanted:
        """A NetworkAttachmentDefinition as a network; NotFoundError only when there is none."""
        nad = await self._cluster.nad(namespace, name)
        network = f"{namespace}/{name}"
        try:
            found, on_disk = f"NetworkAttachmentDefinition {network}", None
            if not nad.config.strip():
                file = await anyio.to_thread.run_sync(self._files.by_name, net.conf_dir, name)
                found, on_disk = f"{found}, {file.path}", file.conf
            conf = _complete(resolve_nad(nad, from_directory=on_disk), net)
        except MultusError as error:
            return Wanted(origin=origin, network=network, refusal=str(error))
        return Wanted(origin=origin, network=network, conf=conf, found=found, resource=nad.resource)

    async def _auxiliary(self, net: NetConf) -> Wanted | None:
        name = net.auxiliary_cni_chain_name
        try:
            on_disk = await anyio.to_thread.run_sync(self._files.auxiliary, net.cluster_network, name, net.cni_version)
        except MultusError as error:
            return Wanted(origin=Origin.AUXILIARY, network=name, refusal=str(error))
        if on_disk is None:
            return None
        return Wanted(origin=Origin.AUXILIARY, network=name, conf=on_disk.conf, found=on_disk.path)


def _complete(conf: NetworkConf, net: NetConf) -> NetworkConf:
    """A list without a version speaks ours, as upstream has it; a single conf without one is 0.1.0, as in libcni."""
    refuse_recursion(conf)
    if conf.is_list and not conf.cni_version and net.cni_version:
        return with_cni_version(conf, net.cni_version)
    return conf


async def _just(wanted: Wanted) -> Wanted:
    return wanted


def _later(lookup: Callable[..., Awaitable[Wanted]], *args: object) -> Callable[[], Awaitable[Wanted]]:
    return lambda: lookup(*args)


async def _all(
    lookups: Sequence[Callable[[], Awaitable[Wanted | None]]], *, tolerant: bool, concurrently: bool
) -> list[Wanted]:
    """The answers in the order of the lookups; the first lookup that cannot be answered now is raised."""
    answers: list[Wanted | None] = [None] * len(lookups)
    failures: dict[int, MultusError] = {}

    async def look(index: int) -> None:
        try:
            answers[index] = await lookups[index]()
        except MultusError as error:
            failures[index] = error

    if concurrently:
        async with anyio.create_task_group() as group:
            for index in range(len(lookups)):
                group.start_soon(look, index)
    else:
        for index in range(len(lookups)):
            await look(index)
            if failures and not tolerant:
                break
    for index in sorted(failures):
        if not tolerant:
            raise failures[index]
        answers[index] = Wanted(origin=Origin.POD, network="?", refusal=str(failures[index]))
    return [answer for answer in answers if answer is not None]
