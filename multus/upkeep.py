"""What keeps the node's promises without being asked: recovery at start, retries of what failed, garbage collection."""

import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence

import anyio
from anyio.abc import TaskStatus

from multus.attach import Attacher, TakeDownError
from multus.cni.conf import NetworkConf, parse_conf
from multus.cni.request import ValidAttachment
from multus.delegates.chain import Chain
from multus.errors import MultusError
from multus.journal import Journal, JournalError
from multus.kube.cluster import Cluster, ClusterError
from multus.sandbox import Sandbox, State
from multus.slots import Lanes
from multus.timeline import span

logger = logging.getLogger(__name__)

_RETRY_FIRST, _RETRY_LAST = 1.0, 300.0  # seconds between tries to do what could not be done


class Upkeep:
    """Works on the journal; shares the lanes with the commands, so the two never touch a container at once.

    `removed` is told of each sandbox of which nothing is left.
    """

    def __init__(
        self,
        *,
        journal: Journal,
        attacher: Attacher,
        chain: Chain,
        lanes: Lanes,
        cluster: Cluster,
        boot_id: str,
        removed: Callable[[Sandbox], Awaitable[None]] | None = None,
    ) -> None:
        self._journal = journal
        self._attacher = attacher
        self._chain = chain
        self._lanes = lanes
        self._cluster = cluster
        self._boot_id = boot_id
        self._removed = removed
        self._wake = anyio.Event()

    def wake(self) -> None:
        """Something was left to be retried."""
        self._wake.set()

    async def remove(self, sandbox: Sandbox) -> None:
        """Take a sandbox down and forget it; the caller holds its lane.

        :raises TakeDownError: when something could not be deleted: the journal keeps the sandbox, and it is retried.
        """
        if sandbox.state is not State.DELETING:
            try:
                with span("journal"):
                    await self._journal.deleting(sandbox.key)
            except JournalError as error:  # a full disk must not keep what a DEL would give back
                logger.error("sandbox %s is taken down without the mark that it is: %s", sandbox.container_id, error)
        try:
            await self._attacher.take_down(sandbox)
        except TakeDownError:
            await self._journal.failed(sandbox.key)
            self.wake()
            raise
        with span("journal"):
            await self._journal.forget(sandbox.key)
        if self._removed is not None:
            await self._removed(sandbox)

    async def recover(self) -> None:
        """Undo what a crash or a reboot left: half-done ADDs, DELs that did not end, sandboxes of another boot.

        All at once: after a reboot that is every pod of the node, and the slots bound what runs.
        """
        async with anyio.create_task_group() as group:
            for sandbox in await self._journal.all():
                half_done = sandbox.state is not State.ATTACHED
                if half_done or sandbox.boot_id != self._boot_id:
                    why = f"was {sandbox.state}" if half_done else "is of an earlier boot"
                    logger.warning("undoing sandbox %s of pod %s: it %s", sandbox.container_id, _pod(sandbox), why)
                    group.start_soon(self._try_remove, sandbox)
                else:
                    group.start_soon(self._undo_half_plugged, sandbox)

    async def run(self, *, task_status: TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Retry, with growing pauses, what could not be deleted and the statuses that could not be written."""
        task_status.started()
        pause = _RETRY_FIRST if await self._retry() else _RETRY_LAST
        while True:
            with anyio.move_on_after(pause):
                await self._wake.wait()
                self._wake = anyio.Event()
                pause = _RETRY_FIRST
                await anyio.sleep(pause)
            left = await self._retry()
            pause = min(pause * 2, _RETRY_LAST) if left else _RETRY_LAST

    async def _retry(self) -> bool:
        """Whether anything is left to be tried again. A journal that fails is no reason to stop serving DELs."""
        try:
            return await self._retry_all()
        except JournalError as error:
            logger.error("what is left cannot be tried again now: %s", error)
            return True

    async def _retry_all(self) -> bool:
        left = False
        for sandbox in await self._journal.all():
            if self._lanes.busy(sandbox.container_id):
                continue
            if sandbox.state is State.DELETING:
                left |= not await self._try_remove(sandbox)
            elif sandbox.state is State.ATTACHED and sandbox.status is not None:
                left |= not await self._try_status(sandbox)
        return left

    async def _try_remove(self, sandbox: Sandbox) -> bool:
        async with self._lanes.holding(sandbox.container_id):
            try:
                fresh = await self._journal.get(sandbox.key)
                if fresh is None or fresh.created != sandbox.created:
                    return True
                await self.remove(fresh)
            except MultusError as error:
                logger.warning("sandbox %s of pod %s is not gone yet: %s", sandbox.container_id, _pod(sandbox), error)
                return False
        logger.info("sandbox %s of pod %s is gone", sandbox.container_id, _pod(sandbox))
        return True

    async def _try_status(self, sandbox: Sandbox) -> bool:
        assert sandbox.status is not None
        try:
            pod = await self._cluster.pod(sandbox.pod_namespace, sandbox.pod_name, uid=sandbox.pod_uid)
            await self._cluster.set_network_status(pod, sandbox.status)
        except ClusterError as error:
            if error.retry:
                return False
            logger.info("network-status of pod %s has nowhere to go: %s", _pod(sandbox), error)
        self._journal.status_written(sandbox.key, sandbox.status)
        return True

    async def _undo_half_plugged(self, sandbox: Sandbox) -> None:
        """A hot-plugged attachment without a result was under way when the daemon died."""
        half = [item.position for item in sandbox.attachments if item.hotplug and item.result is None]
        for position in half:
            async with self._lanes.holding(sandbox.container_id):
                try:
                    await self._attacher.take_down(sandbox, only=[position])
                    await self._journal.unplugged(sandbox.key, position)
                except MultusError as error:
                    logger.warning("half-plugged network of %s is not gone yet: %s", _pod(sandbox), error)

    async def collect(
        self, valid: Iterable[ValidAttachment], default: NetworkConf, legacy: Sequence[Sandbox], path: tuple[str, ...]
    ) -> None:
        """GC: remove every sandbox that the runtime no longer knows, then let each network's plugins do the same.

        `legacy` is what an earlier Multus attached: its attachments are valid too when the runtime says so.

        :raises TakeDownError: naming what could not be removed, after everything was tried.
        """
        known = {(item.container_id, item.ifname) for item in valid}
        errors: list[str] = []
        given_up = set()
        for sandbox in await self._journal.all():
            if sandbox.key in known or self._lanes.busy(sandbox.container_id):
                continue
            if not await self._try_remove(sandbox):
                given_up.add(sandbox.key)
                errors.append(f"{sandbox.container_id} of pod {_pod(sandbox)} could not be removed")
        # Read once more: removing takes time, and what was attached meanwhile is nobody's garbage.
        held = [sandbox for sandbox in await self._journal.all() if sandbox.key not in given_up]
        held += [sandbox for sandbox in legacy if sandbox.key in known]
        errors += await self._collect_networks(known, held, default, path)
        if errors:
            raise CollectError("; ".join(errors), hint="the journal keeps them and they are retried")

    async def _collect_networks(
        self, known: set[tuple[str, str]], held: Sequence[Sandbox], default: NetworkConf, path: tuple[str, ...]
    ) -> list[str]:
        networks: dict[str, tuple[NetworkConf, list[ValidAttachment]]] = {default.name: (default, [])}
        for sandbox in held:
            for item in sandbox.attachments:
                conf = parse_conf(item.conf, where=f"journal of {item.network}")
                entry = networks.setdefault(conf.name, (conf, []))
                entry[1].append(ValidAttachment(container_id=sandbox.container_id, ifname=item.ifname))
        # A container that the runtime knows and we do not: its default network must survive, and as nobody can say
        # which other networks it is on, those keep everything.
        strangers = known - {sandbox.key for sandbox in held}
        networks[default.name][1].extend(ValidAttachment(container_id=key[0], ifname=key[1]) for key in strangers)
        errors = []
        for name, (conf, attachments) in networks.items():
            if strangers and name != default.name:
                continue
            try:
                await self._chain.gc(conf, attachments, path)
            except MultusError as error:
                errors.append(f"network {name}: {error}")
        return errors


class CollectError(MultusError):
    """Garbage that could not be collected this time."""

    retry = True


def _pod(sandbox: Sandbox) -> str:
    return f"{sandbox.pod_namespace}/{sandbox.pod_name}"
