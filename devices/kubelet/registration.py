"""All pools at one kubelet: one service each, and one watch on the kubelet's directories for all of them."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import anyio
import anyio.abc

from devices.kubelet.service import PLUGINS, WATCHED, Mode, Pace, Service
from devices.kubelet.sockets import Rival, rivals, socket_name
from devices.offers import Offer

if TYPE_CHECKING:
    from asyncinotify import Inotify

logger = logging.getLogger(__name__)


class Kubelet:
    """The kubelet whose directory is `directory`, which may come later, go, and come back."""

    def __init__(self, directory: Path, *, mode: Mode = "auto", pace: Pace | None = None) -> None:
        self._directory = directory
        self._mode: Mode = mode
        self._pace = pace or Pace()
        self._group: anyio.abc.TaskGroup | None = None
        self._strangers: frozenset[Rival] = frozenset()
        self._services: dict[str, tuple[Service, anyio.CancelScope, anyio.Event]] = {}

    @property
    def services(self) -> Mapping[str, Service]:
        """By resource."""
        return {resource: service for resource, (service, _, _) in self._services.items()}

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Keep what is served known to the kubelet, until cancelled."""
        async with anyio.create_task_group() as group:
            self._group = group
            try:
                await group.start(self._watch)
                task_status.started()
                await anyio.sleep_forever()
            finally:
                self._group = None

    def serve(self, offer: Offer) -> None:
        """Offer a pool from now on. Only while `run` runs."""
        assert self._group is not None
        service = Service(offer, self._directory, mode=self._mode, pace=self._pace)
        scope, over = anyio.CancelScope(), anyio.Event()
        self._services[offer.resource] = service, scope, over

        async def serve() -> None:
            try:
                with scope:
                    await service.run()
            finally:
                over.set()

        self._group.start_soon(serve, name=f"serve {offer.resource}")

    async def withdraw(self, resource: str) -> None:
        """Offer nothing of that pool any more, and then not the pool."""
        service, scope, over = self._services.pop(resource)
        service.offer.update(())  # a kubelet keeps a plugin's last word for five minutes
        scope.cancel()
        await over.wait()

    async def _watch(self, *, task_status: anyio.abc.TaskStatus[None]) -> None:
        """Ring all services when something changes beside their sockets, and see to it that the watch stands.

        Where there are no more watches to be had, the services look by themselves, only later.
        """
        from asyncinotify import Inotify

        started = False
        while True:
            try:
                with Inotify() as inotify:
                    watched = self._add_watches(inotify)
                    if not started:
                        started = True
                        task_status.started()
                    self._ring()
                    while self._present() == watched:
                        # A directory that was replaced is found at the next look.
                        with anyio.move_on_after(self._pace.period):
                            event = await inotify.get()
                            if event.mask & _ended():
                                break
                            self._ring()
                            continue
                        self._look_around()  # a socket is there before anybody listens on it
            except OSError as error:
                logger.warning("%s is not watched: %s", self._directory, error.strerror or error)
                if not started:
                    started = True
                    task_status.started()
            await anyio.sleep(min(0.05, self._pace.period))

    def _add_watches(self, inotify: "Inotify") -> list[tuple[int, int]]:
        from asyncinotify import Mask

        mask = Mask.CREATE | Mask.DELETE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.ONLYDIR | Mask.DELETE_SELF
        present = self._present()
        for path in self._paths():
            if path.is_dir():
                inotify.add_watch(path, mask | Mask.MOVE_SELF)
        return present

    def _paths(self) -> tuple[Path, ...]:
        """The directory itself as well: those below it may come later."""
        return self._directory, self._directory / PLUGINS, self._directory / WATCHED

    def _look_around(self) -> None:
        """Say which other plugins there are; those of a resource that is served here are the service's to tell of."""
        prefixes = {resource.rpartition("/")[0] for resource in self._services}
        served = {service.path for service, _, _ in self._services.values()}
        names = {socket_name(resource, self._directory / PLUGINS) for resource in self._services}
        found = rivals(self._paths()[1:], prefixes, own=(os.getpid(),), served=served)
        strangers = frozenset(each for each in found if each.path.name not in names)
        for each in sorted(strangers - self._strangers, key=str):
            logger.warning(
                "another device plugin is at work: %s. What its pools and those here both select is given out twice: "
                "take it off this node, or see to it that no device is in both",
                each,
            )
        self._strangers = strangers

    def _present(self) -> list[tuple[int, int]]:
        found = []
        for path in self._paths():
            try:
                info = path.stat()
            except OSError:
                found.append((0, 0))
            else:
                found.append((info.st_dev, info.st_ino))
        return found

    def _ring(self) -> None:
        self._look_around()
        for service, _, _ in self._services.values():
            service.news.ring()


def _ended() -> int:
    from asyncinotify import Mask

    return Mask.IGNORED | Mask.DELETE_SELF | Mask.MOVE_SELF | Mask.UNMOUNT
