"""What each CNI command does: the one place where plan, journal, delegates, routes and status meet."""

import logging
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from devices.linux import netns
from multus import devinfo, legacy
from multus.attach import Attacher, AttachError, TakeDownError
from multus.check import drift
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command, Request, parse_request, pod_ref, valid_attachments
from multus.cni.result import IP, SUPPORTED, Interface, Result, at_least, encode_result, parse_result
from multus.cni.versions import known
from multus.delegates.chain import Chain
from multus.errors import MultusError, from_devices
from multus.journal import Journal
from multus.kube.cluster import Cluster, ClusterError
from multus.kube.objects import Pod
from multus.plan import Plan
from multus.resolve import PodGoneError, Resolver
from multus.routes import apply_gateways
from multus.sandbox import Sandbox, State
from multus.settings import DaemonSettings, NetConf, net_conf
from multus.slots import Lanes
from multus.status import StatusEntry, network_status
from multus.stored import stored_at
from multus.upkeep import Upkeep

logger = logging.getLogger(__name__)

_REMEMBERED = 4096  # containers whose DEL is done: runtimes repeat it, up to five times seen
_READY_WAIT, _READY_POLL = 45.0, 1.0  # seconds, as in upstream
_STATUS_WAIT = 5.0  # seconds an ADD waits for the network-status to be written before it is left for later


class Commands:
    """Carries out CNI requests. `settings` is asked anew for each request, so that a reload applies at once."""

    def __init__(
        self,
        *,
        settings: Callable[[], DaemonSettings],
        resolver: Resolver,
        journal: Journal,
        attacher: Attacher,
        chain: Chain,
        lanes: Lanes,
        upkeep: Upkeep,
        cluster: Cluster,
        devinfo_dir: Path,
        boot_id: str,
        step: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._journal = journal
        self._attacher = attacher
        self._chain = chain
        self._lanes = lanes
        self._upkeep = upkeep
        self._cluster = cluster
        self._devinfo = devinfo_dir
        self._boot_id = boot_id
        self._step = step
        self._deleted: OrderedDict[tuple[str, str], None] = OrderedDict()

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        """One CNI command: what goes to stdout.

        :raises MultusError: for anything that went wrong; the server makes a CNI error of it.
        """
        request = parse_request(env, conf)
        if request.command is Command.VERSION:
            return msgspec.json.encode({"cniVersion": SUPPORTED[-1], "supportedVersions": SUPPORTED})
        net = net_conf(self._settings(), conf)
        if request.command is not Command.DEL:  # of an ADD that was refused here, nothing is left
            known(net.answer_version, "the CNI configuration is")
        match request.command:
            case Command.ADD:
                return await self._add(request, net)
            case Command.DEL:
                with anyio.CancelScope(shield=True):
                    await self._delete(request, net)
            case Command.CHECK:
                await self._check(request, net)
            case Command.STATUS:
                await self._status(request, net)
            case Command.GC:
                with anyio.CancelScope(shield=True):
                    await self._collect(request, net)
        return b""

    async def spooled(self, env: Mapping[str, str], conf: bytes) -> None:
        """Carry out a DEL that the shim stored while no daemon was there, unless an ADD came after it.

        :raises MultusError: it has to be tried again.
        """
        request = parse_request(env, conf)
        sandbox = await self._journal.get((request.container_id, request.ifname))
        if sandbox is not None and sandbox.created > stored_at(request.nonce, default=sandbox.created):
            logger.warning("a stored DEL of container %s is older than its ADD: dropped", request.container_id)
            return
        await self.cni(env, conf)

    async def _add(self, request: Request, net: NetConf) -> bytes:
        limit = self._settings().add_timeout
        try:
            async with self._lanes.adding(request.container_id):
                with anyio.fail_after(limit):
                    return await self._add_alone(request, net)
        except TimeoutError:
            raise CNIError(
                Code.TRY_AGAIN_LATER,
                f"container {request.container_id}: not all networks were attached within {limit:g} s",
                hint="everything was undone; see the daemon's log for the slow network",
            ) from None
        except AttachError as error:
            raise error.as_cni() from error

    async def _add_alone(self, request: Request, net: NetConf) -> bytes:
        done = await self._already(request, net)
        if done is not None:
            return done
        await _indicated(net.readiness_indicator_file)
        self._deleted.pop((request.container_id, request.ifname), None)
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
        try:
            self._step("add:planned")
            await self._journal.begin(sandbox)
            self._step("add:begun")
            result = await self._attach(sandbox, pod, plan)
            self._step("add:answer")
        except BaseException as error:
            with anyio.CancelScope(shield=True):
                await self._undo(sandbox)
                if isinstance(error, MultusError):
                    await self._tell_pod(request, error, pod)
            raise
        return encode_result(result, net.answer_version)

    async def _already(self, request: Request, net: NetConf) -> bytes | None:
        """What the journal knows of this very container: the answer to repeat, or leftovers, which are undone."""
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
        with from_devices():
            identity, names = await anyio.to_thread.run_sync(_look_into, request.netns)
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

    async def _attach(self, sandbox: Sandbox, pod: Pod, plan: Plan) -> Result:
        confs = {item.attachment.position: item.conf for item in plan.attachments}
        results = await self._attacher.attach(sandbox, confs)
        decisions = {item.attachment.ifname: item.gateways for item in plan.attachments}
        by_ifname = {item.ifname: results[item.position] for item in sandbox.attachments}
        corrected = await apply_gateways(sandbox.netns, by_ifname, decisions)
        self._step("add:routed")
        entries = []
        for item in sandbox.attachments:
            info = await devinfo.read(self._devinfo, item.device_info) if item.device_info else None
            entries.append(
                StatusEntry(
                    name=item.network,
                    ifname=item.ifname,
                    result=corrected[item.ifname],
                    is_default=item.default,
                    device_info=info,
                )
            )
        status = network_status(entries)
        result = corrected[sandbox.attachments[0].ifname]
        await self._journal.attached(
            sandbox.key,
            encode_result(result, SUPPORTED[-1]),
            [(item.position, encode_result(corrected[item.ifname], SUPPORTED[-1])) for item in sandbox.attachments],
            status if pod.name else None,
        )
        self._step("add:recorded")
        if pod.name:
            await self._write_status(sandbox, pod, status)
            await self._announce(sandbox, pod, corrected)
        return result

    async def _write_status(self, sandbox: Sandbox, pod: Pod, status: str) -> None:
        """One PATCH. A pod whose networks stand is not failed for an API server that is away: it is told later."""
        try:
            with anyio.fail_after(_STATUS_WAIT):
                await self._cluster.set_network_status(pod, status)
        except (TimeoutError, ClusterError) as error:
            logger.warning("pod %s/%s: network-status is written later: %s", pod.namespace, pod.name, error)
            self._upkeep.wake()
            return
        self._step("add:status")
        await self._journal.status_written(sandbox.key, status)

    async def _announce(self, sandbox: Sandbox, pod: Pod, results: Mapping[str, Result]) -> None:
        """An event for each interface, as upstream sends them, for whoever wants them: a request each."""
        if self._settings().events != "all":
            return
        for item in sandbox.attachments:
            ips = " ".join(ip.address for ip in results[item.ifname].ips)
            message = f"Add {item.ifname} [{ips}] from {item.network}"
            await self._cluster.event(pod, kind="Normal", reason="AddedInterface", message=message)

    async def _undo(self, sandbox: Sandbox) -> None:
        try:
            await self._upkeep.remove(sandbox)
        except MultusError as error:
            logger.error("container %s: the failed ADD is not undone yet: %s", sandbox.container_id, error)
        else:
            self._remember(sandbox.key)

    async def _tell_pod(self, request: Request, error: MultusError, pod: Pod | None = None) -> None:
        reference = pod_ref(request.args)
        if pod is None and reference is not None:
            pod = Pod(namespace=reference.namespace, name=reference.name, uid=reference.uid)
        if pod is not None:
            await self._cluster.event(pod, kind="Warning", reason="FailedAttachNetwork", message=str(error)[:1000])

    async def _delete(self, request: Request, net: NetConf) -> None:
        key = (request.container_id, request.ifname)
        async with self._lanes.holding(request.container_id, calling_off=True):
            if key in self._deleted:
                return
            sandbox = await self._journal.get(key) or await self._forgotten(request, net)
            if sandbox is not None:
                self._step("del:begun")
                try:
                    await self._upkeep.remove(sandbox)
                except TakeDownError as error:
                    if sandbox.failures == 0 or net.retry_delete_on_error:
                        raise
                    # Told once; from now on it is the journal's promise, not the runtime's, and the pod may go.
                    logger.error("container %s: DEL goes on in the background: %s", request.container_id, error)
                    return
                self._step("del:forgotten")
            await anyio.to_thread.run_sync(legacy.remove_legacy, Path(net.cni_dir), request.container_id)
            self._remember(key)

    def _remember(self, key: tuple[str, str]) -> None:
        """Nothing is left of this one, so the runtime's DELs that follow have nothing to look for."""
        self._deleted[key] = None
        while len(self._deleted) > _REMEMBERED:
            self._deleted.popitem(last=False)

    async def _forgotten(self, request: Request, net: NetConf) -> Sandbox | None:
        """A container that the journal does not know: attached by an earlier Multus, or its journal was lost."""
        sandbox = await anyio.to_thread.run_sync(legacy.load_sandbox, Path(net.cni_dir), request, self._boot_id)
        if sandbox is None:
            sandbox = await self._resolver.rebuild(request, net, self._boot_id)
        if sandbox is not None:
            await self._journal.begin(sandbox)
        return sandbox

    async def _check(self, request: Request, net: NetConf) -> None:
        if not at_least(net.answer_version, "0.4.0"):
            raise CNIError(
                Code.INCOMPATIBLE_VERSION,
                f'configuration version "{net.answer_version}" does not support the CHECK command',
            )
        async with self._lanes.holding(request.container_id):
            sandbox = await self._journal.get((request.container_id, request.ifname))
            if sandbox is None or sandbox.state is not State.ATTACHED:
                raise CNIError(
                    Code.UNKNOWN_CONTAINER, f"container {request.container_id} has no networks from this daemon"
                )
            problems = await drift(sandbox, request.netns)
            if problems:
                raise CNIError(Code.INTERNAL, "the pod's networks are not as they were attached", "; ".join(problems))
            await self._attacher.check(sandbox)

    async def _status(self, request: Request, net: NetConf) -> None:
        if at_least(net.answer_version, "1.1.0"):
            await _indicated(net.readiness_indicator_file)
            default = await self._resolver.default_network(net)
            await self._chain.status(default, request.path)

    async def _collect(self, request: Request, net: NetConf) -> None:
        valid = valid_attachments(request.conf)
        if valid is None:
            raise CNIError(
                Code.INVALID_NETWORK_CONFIG,
                "GC without cni.dev/valid-attachments: nothing can be told from garbage",
                hint="the runtime must list the attachments that are in use",
            )
        await _indicated(net.readiness_indicator_file)
        default = await self._resolver.default_network(net)
        old = await anyio.to_thread.run_sync(legacy.load_sandboxes, Path(net.cni_dir), valid, self._boot_id)
        await self._upkeep.collect(valid, default, old, request.path)


def _look_into(path: str) -> tuple[str | None, frozenset[str]]:
    """Which namespace it is, None for none, and the interfaces that are there already."""
    identity = netns.identity(path)
    return identity, frozenset(netns.interface_names(path)) if identity is not None else frozenset()


async def _indicated(path: str) -> None:
    """Wait for the file by which the default network says that it is ready.

    :raises CNIError: it did not come in time.
    """
    with anyio.move_on_after(_READY_WAIT):
        while path and not await anyio.Path(path).exists():  # noqa: ASYNC110 (a file of somebody else's)
            await anyio.sleep(_READY_POLL)
        return
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"still waiting for readinessindicatorfile {path} after {_READY_WAIT:g} s",
        hint="have you checked that your default network is ready?",
    )


def _placeholder(request: Request) -> Result:
    """What upstream answers for a pod that is gone: kubelet wants an address, and there is none."""
    return Result(
        interfaces=(Interface(name=request.ifname, sandbox=request.netns),),
        ips=(IP(address="0.0.0.0/32", gateway="0.0.0.0"),),  # noqa: S104 (no address is bound)
    )
