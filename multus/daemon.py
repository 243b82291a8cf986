"""multusd: wires the parts together under one root task group, and keeps them in order at start, reload and stop.

Start: settings, journal, cluster caches, recovery of what a crash left, then the socket; so that whoever is answered is
answered by a daemon that knows what the node holds. Stop: running calls end, new ones go to the successor, the CNI
configuration stays where it is, so that no pod comes up with only its primary network meanwhile.
"""

import argparse
import fcntl
import gc
import logging
import os
import signal
import sys
from collections.abc import Callable, Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import anyio
import anyio.abc
import anyio.to_thread

from devices.linux.vf_kernel import LinuxKernel
from multus import confdir, logs
from multus.assignments import Assignments, KubeletAssignments, NoAssignments, PoolAssignments
from multus.attach import Attacher, unmeasured
from multus.commands import Commands
from multus.delegates.chain import Chain
from multus.delegates.native.registry import native_delegates
from multus.delegates.passthru import passthru
from multus.delegates.plugin import Runner
from multus.delegates.sriov import Sriov
from multus.drills import from_environment
from multus.errors import Fault, MultusError
from multus.hardware import make_manager, make_policies, run_manager
from multus.hotplug import Hotplug
from multus.journal import Journal
from multus.kube.cluster import Cluster, NoCluster
from multus.reload import Reloader
from multus.resolve import Resolver
from multus.server import InterfaceAttributes, Server
from multus.settings import DEFAULT_CONFIG, DaemonSettings
from multus.slots import Lanes, Slots
from multus.spool import Spool
from multus.upkeep import Upkeep

if TYPE_CHECKING:
    from devices.manager import Manager
    from multus.kube.claims import Claims
    from multus.metrics import Metrics

logger = logging.getLogger(__name__)

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_RECOVERY = 30.0  # seconds that attaches wait for leftovers to be undone; the rest goes on beside them


class DaemonError(MultusError):
    """The daemon cannot start."""

    fault: ClassVar[Fault] = Fault.OPERATOR


class Daemon:
    """What stands behind the socket: the CNI commands, hot-plug, and whether the daemon is ready for them."""

    def __init__(self, commands: Commands, hotplug: Hotplug, metrics: "Metrics | None" = None) -> None:
        self._commands = commands
        self._metrics = metrics
        self._hotplug = hotplug
        self.not_ready = "multusd is starting"

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        """One CNI call of the runtime."""
        if self._metrics is None:
            return await self._commands.cni(env, conf)
        with self._metrics.call(env.get("CNI_COMMAND", "")):
            return await self._commands.cni(env, conf)

    async def delegate(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes) -> bytes:
        """One CNI call for one interface of a running pod."""
        return await self._hotplug.call(dict(env), conf, attributes)

    def ready(self) -> tuple[bool, str]:
        """Whether attaches can be served now, and if not, why."""
        return not self.not_ready, self.not_ready


async def serve(path: Path, *, env: Mapping[str, str]) -> None:
    """Run the daemon until SIGTERM or SIGINT.

    :raises MultusError: when it cannot start.
    """
    reloader = Reloader(path, node_name=env.get("MULTUS_NODE_NAME", ""))
    settings = reloader.current
    _complain((*configure_logs(settings), *settings.warnings))
    directory = Path(settings.cni_dir)
    boot_id = (await anyio.Path(_BOOT_ID).read_text(encoding="ascii")).strip()
    async with AsyncExitStack() as stack:
        stack.enter_context(_Lock(directory))
        spool = Spool(directory / "spool")
        await anyio.to_thread.run_sync(spool.prepare)
        metrics = _metrics(settings)
        cluster, claims = await _cluster(settings, stack, metrics)
        journal = await stack.enter_async_context(Journal.open(directory / "journal.db"))
        step = from_environment(env)
        slots, lanes = Slots(settings.max_concurrent_delegates), Lanes()
        reloader.on_change(lambda old, new: slots.resize(new.max_concurrent_delegates - old.max_concurrent_delegates))
        reloader.on_change(lambda _, new: _complain(configure_logs(new)))
        chain = _chain(lambda: reloader.current, journal, boot_id)
        devinfo_dir = Path(settings.device_info_dir)
        measure = metrics.delegate if metrics else unmeasured
        deadline = settings.delegate_timeout + 10
        attacher = Attacher(chain, slots, devinfo_dir=devinfo_dir, deadline=deadline, step=step, measure=measure)
        manager = make_manager(settings, journal)
        policies = await make_policies(settings, journal, manager)
        assignments = _assignments(settings, claims, manager, journal)
        own = assignments if isinstance(assignments, PoolAssignments) else None
        upkeep = Upkeep(
            journal=journal,
            attacher=attacher,
            chain=chain,
            lanes=lanes,
            cluster=cluster,
            boot_id=boot_id,
            removed=own.removed if own else None,
        )
        commands = Commands(
            settings=lambda: reloader.current,
            resolver=Resolver(
                cluster=cluster,
                assignments=assignments,
                files=confdir.Files(),
                sequential=lambda: reloader.current.attach_order == "sequential",
                device_info_dir=settings.device_info_dir,
            ),
            journal=journal,
            attacher=attacher,
            chain=chain,
            lanes=lanes,
            upkeep=upkeep,
            cluster=cluster,
            devinfo_dir=devinfo_dir,
            boot_id=boot_id,
            step=step,
        )
        hotplug = Hotplug(journal=journal, attacher=attacher, chain=chain, slots=slots, lanes=lanes)
        daemon = Daemon(commands, hotplug, metrics)
        server = Server(Path(settings.socket_path), daemon, limit=settings.connection_limit or 256)
        async with anyio.create_task_group() as group:
            await group.start(_stop_on_signal, group.cancel_scope, server)
            await group.start(cluster.run)
            if manager is not None:
                await group.start(run_manager, manager)
            await _recover(group, upkeep)
            if own is not None:
                await own.collect()
            if policies is not None:  # not before: what leftovers hold is held
                await group.start(policies.run)
            await group.start(upkeep.run)
            await group.start(server.serve)
            await group.start(spool.run, commands.spooled)
            await group.start(reloader.run)
            if metrics:
                metrics.watch_queue(lambda: slots.waiting)
                if manager is not None:
                    metrics.watch_devices(manager.statistics)
                await group.start(_serve_metrics, settings, metrics, journal)
            if settings.multus_config_file != "none":
                await _keep_conf(group, reloader)
            gc.collect()
            gc.freeze()  # what stands now stays: the collector need not walk through it again and again
            daemon.not_ready = ""
            logger.info("multusd serves %s; state is in %s", settings.socket_path, directory)
    logger.info("multusd has stopped")


def _complain(complaints: Iterable[str]) -> None:
    for complaint in complaints:
        logger.warning("%s", complaint)


def configure_logs(settings: DaemonSettings) -> list[str]:
    """Logging as the settings say; what could not be had."""
    return logs.configure(
        level=settings.log_level,
        file=settings.log_file,
        to_stderr=settings.log_to_stderr,
        options=settings.log_options,
        form=settings.log_format,
    )


def _chain(settings: Callable[[], DaemonSettings], journal: Journal, boot_id: str) -> Chain:
    runner = Runner(chroot=settings().chroot_dir, timeout=lambda: settings().delegate_timeout)
    sriov = Sriov(runner, journal.records, LinuxKernel(), boot_id=boot_id)
    native = native_delegates(settings().native_delegates, runner, root=settings().chroot_dir)
    return Chain(
        runner,
        in_process={"passthru": passthru, "sriov": sriov, **native},
        bin_dirs=lambda: (settings().bin_dir,),
    )


def _assignments(
    settings: DaemonSettings, claims: "Claims | None", manager: "Manager | None", journal: Journal
) -> Assignments:
    """Devices come from the kubelet where there is one, as under an API server; a folder of YAML has none."""
    if settings.manifests:
        return PoolAssignments(manager, journal.all, grace=settings.add_timeout + 10) if manager else NoAssignments()
    return KubeletAssignments(Path(settings.kubelet_dir), claims)


def _metrics(settings: DaemonSettings) -> "Metrics | None":
    if not settings.metrics_port:
        return None
    from multus.metrics import Metrics

    return Metrics()


async def _serve_metrics(
    settings: DaemonSettings,
    metrics: "Metrics",
    journal: Journal,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    from multus.metrics import listening, serve

    async with listening(settings.metrics_bind, settings.metrics_port or 0) as listener:
        await serve(metrics, listener, journal.all, task_status=task_status)


async def _cluster(
    settings: DaemonSettings, stack: AsyncExitStack, metrics: "Metrics | None" = None
) -> tuple[Cluster, "Claims | None"]:
    """The cluster as configured; the libraries of one that is not used are not even imported."""
    if settings.manifests:
        from multus.kube.folder import FolderCluster

        return FolderCluster(Path(settings.manifests), node=settings.node_name), None
    if settings.kubeconfig or os.environ.get("KUBERNETES_SERVICE_HOST"):
        from multus.kube.api import Api
        from multus.kube.live import LiveCluster

        if not settings.node_name:
            raise DaemonError(
                "the node's name is not known",
                hint='set "nodeName" in the configuration, or MULTUS_NODE_NAME from spec.nodeName in the DaemonSet',
            )
        api = await stack.enter_async_context(Api.open(settings.kubeconfig))
        if metrics:
            api.observe = metrics.requested
        live = LiveCluster(api, settings.node_name)
        return live, live
    logger.warning("neither kubeconfig nor manifests is set: pods get the node's networks, and no others")
    return NoCluster(), None


async def _recover(group: anyio.abc.TaskGroup, upkeep: Upkeep) -> None:
    """Undo leftovers before attaches are served, but do not keep the node from serving for ever."""
    done = anyio.Event()

    async def recover() -> None:
        await upkeep.recover()
        done.set()

    group.start_soon(recover)
    with anyio.move_on_after(_RECOVERY) as patience:
        await done.wait()
    if patience.cancelled_caught:
        logger.warning("leftovers are not all undone after %g s: serving begins, undoing goes on", _RECOVERY)


async def _keep_conf(group: anyio.abc.TaskGroup, reloader: Reloader) -> None:
    from multus.install.keeper import ConfKeeper

    keeper = ConfKeeper(reloader.current)
    reloader.on_change(lambda _, new: keeper.update(new))
    await group.start(keeper.run)


async def _stop_on_signal(
    scope: anyio.CancelScope,
    server: Server,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    with anyio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        task_status.started()
        async for number in signals:
            logger.info("%s: running calls are finished, then multusd stops", signal.Signals(number).name)
            await server.drain()
            scope.cancel()
            return


class _Lock:
    """Holds the state directory: two daemons on one journal would undo each other's work."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._descriptor = -1

    def __enter__(self) -> None:
        try:
            self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._descriptor = os.open(self._directory / "multusd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DaemonError(
                f"another multusd holds {self._directory}", hint="stop it first, or give this one another cniDir"
            ) from None
        except OSError as error:
            raise DaemonError(
                f"cannot use the state directory {self._directory}: {error.strerror or error}",
                hint="cniDir must be a directory that root can write",
            ) from None

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)


def main(arguments: list[str] | None = None) -> int:
    """The program `multusd`."""
    parser = argparse.ArgumentParser(prog="multusd", description="Serves CNI calls that give pods several networks.")
    parser.add_argument("--config", "-config", default=DEFAULT_CONFIG, metavar="FILE", help="daemon-config.json")
    parser.add_argument("--version", "-version", action="store_true", help="print the version and exit")
    chosen = parser.parse_args(arguments)
    if chosen.version:
        from importlib.metadata import version

        print(f"multusd {version('multus')}")
        return 0
    try:
        anyio.run(lambda: serve(Path(chosen.config), env=os.environ))
    except MultusError as error:
        print(f"multusd: {error}", file=sys.stderr)
        return 1
    except BaseExceptionGroup as group:
        told, defects = group.split(MultusError)
        if defects is not None:
            raise
        assert told is not None
        for each in _leaves(told):
            print(f"multusd: {each}", file=sys.stderr)
        return 1
    return 0


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found += _leaves(error) if isinstance(error, BaseExceptionGroup) else [error]
    return found


if __name__ == "__main__":
    sys.exit(main())
