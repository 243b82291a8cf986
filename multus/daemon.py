"""multusd: runs the parts under one root task group, and keeps them in order at start, reload and stop.

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
from collections.abc import Iterable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc
import anyio.to_thread

from multus import logs
from multus.commands import Commands
from multus.errors import MultusError
from multus.hardware import run_manager
from multus.hotplug import Hotplug
from multus.reload import Reloader
from multus.server import InterfaceAttributes, Server
from multus.settings import DEFAULT_CONFIG, DaemonSettings
from multus.spool import Spool
from multus.timeline import Timelines
from multus.wiring import DaemonError, Parts, wire

if TYPE_CHECKING:
    from multus.metrics import Metrics

logger = logging.getLogger(__name__)

_RECOVERY = 30.0  # seconds that attaches wait for leftovers to be undone; the rest goes on beside them


class Daemon:
    """What stands behind the socket: the CNI commands, hot-plug, and whether the daemon is ready for them."""

    def __init__(self, commands: Commands, hotplug: Hotplug, metrics: "Metrics | None" = None) -> None:
        self._commands = commands
        self._metrics = metrics
        self._hotplug = hotplug
        self.timelines = Timelines(observe=metrics.phase if metrics else None)
        self.not_ready = "multusd is starting"

    async def cni(self, env: Mapping[str, str], conf: bytes) -> bytes:
        """One CNI call of the runtime."""
        with self.timelines.recording(env):
            if self._metrics is None:
                return await self._commands.cni(env, conf)
            with self._metrics.call(env.get("CNI_COMMAND", "")):
                return await self._commands.cni(env, conf)

    async def delegate(self, env: Mapping[str, str], conf: bytes, attributes: InterfaceAttributes) -> bytes:
        """One CNI call for one interface of a running pod."""
        with self.timelines.recording(env):
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
    reloader.on_change(lambda _, new: _complain(configure_logs(new)))
    directory = Path(settings.cni_dir)
    async with AsyncExitStack() as stack:
        stack.enter_context(_Lock(directory))
        spool = Spool(directory / "spool")
        await anyio.to_thread.run_sync(spool.prepare)
        parts = await wire(reloader, stack, env=env)
        daemon = Daemon(parts.commands, parts.hotplug, parts.metrics)
        limit = settings.connection_limit or 256
        timelines, devices = daemon.timelines.encode, parts.by_hand.answer
        server = Server(Path(settings.socket_path), daemon, limit=limit, timelines=timelines, devices=devices)
        async with anyio.create_task_group() as group:
            await group.start(_stop_on_signal, group.cancel_scope, server)
            await group.start(parts.cluster.run)
            if parts.manager is not None:
                await group.start(run_manager, parts.manager)
            await _recover(group, parts)
            if parts.pool is not None:
                await parts.pool.collect()
            if parts.policies is not None:  # not before: what leftovers hold is held
                await group.start(parts.policies.run)
            await group.start(parts.upkeep.run)
            await group.start(server.serve)
            await group.start(spool.run, parts.commands.spooled)
            await group.start(reloader.run)
            if parts.metrics is not None:
                await group.start(_serve_metrics, settings, parts.metrics, parts)
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


async def _serve_metrics(
    settings: DaemonSettings,
    metrics: "Metrics",
    parts: Parts,
    *,
    task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED,
) -> None:
    from multus.metrics import listening, serve

    metrics.watch_queue(lambda: parts.slots.waiting)
    if parts.manager is not None:
        metrics.watch_devices(parts.manager.statistics)
    async with listening(settings.metrics_bind, settings.metrics_port or 0) as listener:
        await serve(metrics, listener, parts.journal.all, task_status=task_status)


async def _recover(group: anyio.abc.TaskGroup, parts: Parts) -> None:
    """Undo leftovers before attaches are served, but do not keep the node from serving for ever."""
    done = anyio.Event()

    async def recover() -> None:
        await parts.binder.recover()  # first: a take-down finds VFs on one driver or on the other, and not between
        await parts.upkeep.recover()
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
        # A loop in C: of 64 pods at once, an eighth of the time.
        anyio.run(lambda: serve(Path(chosen.config), env=os.environ), backend_options={"use_uvloop": True})
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
