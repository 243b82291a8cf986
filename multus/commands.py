"""What each CNI command does, but for ADD (`multus.adding`): DEL, CHECK, STATUS and GC, from the journal."""

import logging
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import anyio
import anyio.to_thread
import msgspec

from multus import legacy
from multus.adding import Adder
from multus.attach import Attacher, TakeDownError
from multus.check import drift
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command, Request, ValidAttachment, parse_request, valid_attachments
from multus.cni.result import SUPPORTED, at_least
from multus.cni.versions import known
from multus.delegates.chain import Chain
from multus.errors import MultusError
from multus.journal import Journal, JournalError
from multus.kube.cluster import Cluster
from multus.ports import Ports
from multus.readiness import indicated, refuse_unindicated
from multus.resolve import Resolver
from multus.sandbox import Sandbox, State
from multus.settings import DaemonSettings, NetConf, net_conf
from multus.slots import Gone, Lanes
from multus.stored import stored_at
from multus.timeline import queued, span
from multus.upkeep import Upkeep

logger = logging.getLogger(__name__)


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
        ports: Ports | None = None,
    ) -> None:
        self._settings = settings
        self._resolver = resolver
        self._journal = journal
        self._attacher = attacher
        self._chain = chain
        self._lanes = lanes
        self._upkeep = upkeep
        self._boot_id = boot_id
        self._step = step
        self._gone = Gone()
        self._adder = Adder(
            settings=settings,
            resolver=resolver,
            journal=journal,
            attacher=attacher,
            lanes=lanes,
            upkeep=upkeep,
            cluster=cluster,
            devinfo_dir=devinfo_dir,
            boot_id=boot_id,
            step=step,
            gone=self._gone,
            ports=ports,
        )

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        """One CNI command: what goes to stdout.

        :raises MultusError: for anything that went wrong; the server makes a CNI error of it.
        """
        request = parse_request(env, conf)
        if request.command is Command.VERSION:
            return msgspec.json.encode({"cniVersion": SUPPORTED[-1], "supportedVersions": SUPPORTED})
        net = await self._net(request, conf)
        if request.command is not Command.DEL:  # of an ADD that was refused here, nothing is left
            known(net.answer_version, "the CNI configuration is")
        match request.command:
            case Command.ADD:
                return await self._adder.add(request, net)
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
        net = await self._net(request, conf, stored=True)
        with anyio.CancelScope(shield=True):
            await self._delete(request, net)

    async def _net(self, request: Request, conf: bytes, *, stored: bool = False) -> NetConf:
        """The request's configuration. What was attached is in the journal: its DEL needs none that can still be used.

        Nor does one that was `stored`: nobody is left who could send a better one.

        :raises MultusError: it cannot be used.
        """
        settings = self._settings()
        try:
            return net_conf(settings, conf)
        except MultusError as error:
            key = (request.container_id, request.ifname)
            needed = not (stored or key in self._gone or await self._journal.get(key))
            if request.command is not Command.DEL or needed:
                raise
            logger.warning("DEL of container %s goes on without its configuration: %s", request.container_id, error)
            return NetConf(cni_dir=settings.cni_dir)

    async def _delete(self, request: Request, net: NetConf) -> None:
        key = (request.container_id, request.ifname)
        waited = await self._journal.get(key) if self._lanes.busy(request.container_id) else None
        async with self._lanes.holding(request.container_id, request.ifname, calling_off=True):
            queued()
            if key in self._gone:
                return
            sandbox = await self._taken(key) or await self._forgotten(request, net)
            if sandbox is not None:
                if waited is not None and sandbox.failures > waited.failures and not net.retry_delete_on_error:
                    # A try failed meanwhile, and whoever made it was told. A hanging plugin would hang for each of us.
                    return
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
            self._gone.add(key)

    async def _taken(self, key: tuple[str, str]) -> Sandbox | None:
        try:
            with span("journal"):
                return await self._journal.taken(key)
        except JournalError:  # a full disk must not keep what a DEL would give back
            return await self._journal.get(key)

    async def _forgotten(self, request: Request, net: NetConf) -> Sandbox | None:
        """A container that the journal does not know: attached by an earlier Multus, or its journal was lost."""
        if await self._journal.container(request.container_id):
            return None  # it knows it by another interface name, whose are the networks that would be found
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
            await refuse_unindicated(net.readiness_indicator_file)
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
        began = time.time()
        await indicated(net.readiness_indicator_file)
        default = await self._resolver.default_network(net)
        old = await anyio.to_thread.run_sync(legacy.load_sandboxes, Path(net.cni_dir), valid, self._boot_id)
        # The runtime's list is as old as its call: what it has asked for since then is no garbage.
        fresh = [each.key for each in await self._journal.all() if each.created >= began]
        spared = (*valid, *(ValidAttachment(container_id=key[0], ifname=key[1]) for key in fresh))
        await self._upkeep.collect(spared, default, old, request.path)
