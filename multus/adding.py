"""ADD: a plan, its intent in the journal, the delegates, the routes, the status; or everything undone."""

import logging
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import anyio
import anyio.to_thread

from devices.linux import netns
from multus import devinfo
from multus.attach import Attacher, AttachError
from multus.cni.errors import CNIError, Code
from multus.cni.request import Request, pod_ref
from multus.cni.result import IP, SUPPORTED, Interface, Result, encode_result, parse_result
from multus.errors import MultusError, from_devices
from multus.journal import Journal, JournalError
from multus.kube.cluster import Cluster, ClusterError
from multus.kube.objects import Pod
from multus.plan import Plan
from multus.ports import EVENT, NOTHING, Ports
from multus.readiness import indicated
from multus.resolve import PodGoneError, Resolver
from multus.routes import apply_gateways
from multus.sandbox import Sandbox, State
from multus.settings import DaemonSettings, NetConf
from multus.slots import Gone, Lanes
from multus.status import StatusEntry, network_status
from multus.timeline import queued, span
from multus.upkeep import Upkeep

logger = logging.getLogger(__name__)

_STATUS_WAIT = 5.0  # seconds an ADD waits for the network-status to be written before it is left for later


class Adder:
    """Carries out ADDs. `gone` is told of those that were undone, so that their DELs have nothing to look for."""

    def __init__(
        self,
        *,
        settings: Callable[[], DaemonSettings],
        resolver: Resolver,
        journal: Journal,
        attacher: Attacher,
        lanes: Lanes,
        upkeep: Upkeep,
        cluster: Cluster,
        devinfo_dir: Path,
        boot_id: str,
        step: Callable[[str], None],
        gone: Gone,
        ports: Ports | None = None,
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._journal = journal
        self._attacher = attacher
        self._lanes = lanes
        self._upkeep = upkeep
        self._cluster = cluster
        self._devinfo = devinfo_dir
        self._boot_id = boot_id
        self._step = step
        self._gone = gone
        self._ports = ports

    async def add(self, request: Request, net: NetConf) -> bytes:
        """One ADD: the result to print.

        :raises MultusError: nothing is attached then.
        """
        limit = self._settings().add_timeout
        try:
            async with self._lanes.adding(request.container_id, request.ifname):
                queued()
                with anyio.fail_after(limit):
                    return await self._alone(request, net)
        except TimeoutError:
            raise CNIError(
                Code.TRY_AGAIN_LATER,
                f"container {request.container_id}: not all networks were attached within {limit:g} s",
                hint="everything was undone; see the daemon's log for the slow network",
            ) from None
        except AttachError as error:
            raise error.as_cni() from error

    async def _alone(self, request: Request, net: NetConf) -> bytes:
        done = await self._already(request, net)
        if done is not None:
            return done
        await indicated(net.readiness_indicator_file)
        self._gone.discard((request.container_id, request.ifname))
        try:
            pod, plan = await self._resolver.plan(request, net)
            plan.refuse()
        except PodGoneError as gone:
            # The pod was deleted while it was being made; the runtime will take the sandbox down in a moment.
            logger.warning("%s: nothing is attached for container %s", gone, request.container_id)
            return encode_result(_placeholder(request), net.answer_version)
        except MultusError as error:
            await self._tell_pod(request, error)
            raise
        sandbox = await self._sandbox(request, pod, plan)
        results: dict[int, Result] = {}
        try:
            self._step("add:planned")
            with span("journal"):
                await self._journal.begin(sandbox)
            self._step("add:begun")
            result = await self._attach(sandbox, pod, plan, results)
            self._step("add:answer")
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._undo(sandbox, results)
                if isinstance(error, MultusError):
                    await self._tell_pod(request, error, pod)
            raise
        return encode_result(result, net.answer_version)

    async def _already(self, request: Request, net: NetConf) -> bytes | None:
        """What the journal knows of this very container: the answer to repeat, or leftovers, which are undone."""
        if (request.container_id, request.ifname) not in self._journal:
            return None
        with span("journal"):
            old = await self._journal.get((request.container_id, request.ifname))
        if old is None:
            return None
        if old.state is State.ATTACHED and old.result is not None:
            if request.nonce and old.nonce == request.nonce:
                return encode_result(parse_result(old.result, where="journal"), net.answer_version)
            with from_devices():
                live = await anyio.to_thread.run_sync(netns.identity, request.netns)
            if live is not None and live == old.netns_id:
                raise CNIError(
                    Code.INVALID_ENVIRONMENT,
                    f"container {request.container_id} already has its networks on {request.ifname}",
                    hint="a runtime must DEL before it ADDs again",
                )
        await self._upkeep.remove(old)
        return None

    async def _sandbox(self, request: Request, pod: Pod, plan: Plan) -> Sandbox:
        with span("sandbox"), from_devices():
            identity, names = await anyio.to_thread.run_sync(look_into, request.netns)
        if identity is None:
            raise CNIError(
                Code.INVALID_ENVIRONMENT,
                f"CNI_NETNS {request.netns!r} is not a network namespace that this daemon can see",
                hint="is the directory of network namespaces mounted into the daemon with HostToContainer propagation?",
            )
        for item in plan.attachments:
            if item.attachment.ifname in names:
                raise CNIError(
                    Code.INVALID_ENVIRONMENT,
                    f"network {item.attachment.network!r}: the pod already has an interface {item.attachment.ifname}",
                    hint="ask for another interface name",
                )
        return Sandbox(
            container_id=request.container_id,
            ifname=request.ifname,
            state=State.ADDING,
            netns=request.netns,
            netns_id=identity,
            boot_id=self._boot_id,
            pod_namespace=pod.namespace,
            pod_name=pod.name,
            pod_uid=pod.uid,
            nonce=request.nonce,
            attachments=tuple(item.attachment for item in plan.attachments),
        )

    async def _attach(self, sandbox: Sandbox, pod: Pod, plan: Plan, results: dict[int, Result]) -> Result:
        confs = {item.attachment.position: item.conf for item in plan.attachments}
        await self._attacher.attach(sandbox, confs, results)
        decisions = {item.attachment.ifname: item.gateways for item in plan.attachments}
        by_ifname = {item.ifname: results[item.position] for item in sandbox.attachments}
        with span("routes"):
            corrected = await apply_gateways(sandbox.netns, by_ifname, decisions)
        self._step("add:routed")
        told = await self._ports.publish(sandbox, pod, corrected) if self._ports is not None else NOTHING
        entries = []
        for item in sandbox.attachments:
            info = await devinfo.read(self._devinfo, item.device_info) if item.device_info else None
            entries.append(
                StatusEntry(
                    name=item.network,
                    ifname=item.ifname,
                    result=corrected[item.ifname],
                    is_default=item.default,
                    device_info=told.device_info(item.ifname, info),
                )
            )
        status = network_status(entries)
        result = corrected[sandbox.attachments[0].ifname]
        recorded = self._journal.attached(
            sandbox.key,
            encode_result(result, SUPPORTED[-1]),
            [(item.position, encode_result(corrected[item.ifname], SUPPORTED[-1])) for item in sandbox.attachments],
            status if pod.name else None,
        )
        written = bool(pod.name) and await self._write_status(pod, status)
        with span("journal"):
            await recorded
        self._step("add:recorded")
        if written:
            self._journal.status_written(sandbox.key, status)
        if pod.name:
            await self._announce(sandbox, pod, corrected)
            for lack in told.lacks:
                await self._cluster.event(
                    pod, kind="Warning", reason=EVENT, message=f"DPDK will not work: {lack}"[:1000]
                )
        return result

    async def _write_status(self, pod: Pod, status: str) -> bool:
        """One PATCH; whether it is done.

        A pod whose networks stand is not failed for an API server that is away: it is told later.
        """
        try:
            with anyio.fail_after(_STATUS_WAIT), span("status"):
                await self._cluster.set_network_status(pod, status)
        except (TimeoutError, ClusterError) as error:
            logger.warning("pod %s/%s: network-status is written later: %s", pod.namespace, pod.name, error)
            self._upkeep.wake()
            return False
        self._step("add:status")
        return True

    async def _announce(self, sandbox: Sandbox, pod: Pod, results: Mapping[str, Result]) -> None:
        """An event for each interface, as upstream sends them, for whoever wants them: a request each."""
        if self._settings().events != "all":
            return
        for item in sandbox.attachments:
            ips = " ".join(ip.address for ip in results[item.ifname].ips)
            message = f"Add {item.ifname} [{ips}] from {item.network}"
            with span("events"):
                await self._cluster.event(pod, kind="Normal", reason="AddedInterface", message=message)

    async def _undo(self, sandbox: Sandbox, results: Mapping[int, Result]) -> None:
        # Some plugins, as firewall, undo nothing without the result of the ADD, or what the journal has of it.
        told = {position: encode_result(result, SUPPORTED[-1]) for position, result in results.items()}
        with suppress(JournalError):
            sandbox = await self._journal.get(sandbox.key) or sandbox
        sandbox = sandbox.with_results(told)
        try:
            await self._upkeep.remove(sandbox)
        except MultusError as error:
            logger.error("container %s: the failed ADD is not undone yet: %s", sandbox.container_id, error)
            with suppress(JournalError):  # it is for those who try again
                for position, result in told.items():
                    await self._journal.recorded(sandbox.key, position, result)
        else:
            self._gone.add(sandbox.key)

    async def _tell_pod(self, request: Request, error: MultusError, pod: Pod | None = None) -> None:
        reference = pod_ref(request.args)
        if pod is None and reference is not None:
            pod = Pod(namespace=reference.namespace, name=reference.name, uid=reference.uid)
        if pod is not None:
            await self._cluster.event(pod, kind="Warning", reason="FailedAttachNetwork", message=str(error)[:1000])


def look_into(path: str) -> tuple[str | None, frozenset[str]]:
    """Which namespace it is, None for none, and the interfaces that are there already; blocks.

    :raises DeviceError: it cannot be looked into.
    """
    identity = netns.identity(path)
    return identity, frozenset(netns.interface_names(path)) if identity is not None else frozenset()


def _placeholder(request: Request) -> Result:
    """What upstream answers for a pod that is gone: kubelet wants an address, and there is none."""
    return Result(
        interfaces=(Interface(name=request.ifname, sandbox=request.netns),),
        ips=(IP(address="0.0.0.0/32", gateway="0.0.0.0"),),  # noqa: S104 (no address is bound)
    )
