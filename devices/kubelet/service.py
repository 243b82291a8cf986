"""One pool at one kubelet: its socket, and that the kubelet knows of it, whatever happens to either.

A kubelet that restarts empties device-plugins and forgets every plugin. It may also stop following a plugin without
saying so (kubernetes/kubernetes 92958, 125501). Both are found out here, and the plugin comes back by itself.
"""

import contextlib
import logging
from pathlib import Path
from typing import Final, Literal

import anyio
from grpclib.client import Channel
from grpclib.exceptions import GRPCError

from devices.kubelet.api import deviceplugin_grpc
from devices.kubelet.api import deviceplugin_pb2 as api
from devices.kubelet.errors import KubeletError
from devices.kubelet.plugin import VERSION, DevicePlugin, Introduction, options
from devices.kubelet.sockets import HangUpServer, Identity, Rival, identity, rival_of, socket_name
from devices.offers import Bell, Offer

logger = logging.getLogger(__name__)

PLUGINS: Final = "device-plugins"
"""Below the kubelet's directory: where it listens, and plugins beside it."""
WATCHED: Final = "plugins_registry"
"""Below the kubelet's directory: it finds plugins by itself that put a socket here."""

Mode = Literal["auto", "register", "watched"]
"""Whether a plugin calls the kubelet or is found by it; auto is watched where the kubelet can do so, as upstream."""

_CLOSING: Final = 2.0  # seconds


class Pace:
    """How patient a service is, in seconds.

    `period` between looks when nothing was told; `patience` for a kubelet that knows the plugin but does not follow it;
    `settle` after it stopped following; `first` and `longest` between attempts that fail; `call` for one call.
    """

    def __init__(
        self,
        *,
        period: float = 5.0,
        patience: float = 10.0,
        settle: float = 1.0,
        first: float = 0.2,
        longest: float = 30.0,
        call: float = 5.0,
    ) -> None:
        self.period, self.patience, self.settle = period, patience, settle
        self.first, self.longest, self.call = first, longest, call


class Service:
    """Serves `offer` to the kubelet whose directory is `directory`. Ring `news` when something there changed.

    `rival` is another device plugin that serves the same resource: for as long as it does, this one does not.
    """

    def __init__(self, offer: Offer, directory: Path, *, mode: Mode = "auto", pace: Pace | None = None) -> None:
        self.offer = offer
        self.news = Bell()
        self.rival: Rival | None = None
        self._directory = directory
        self._mode = mode
        self._pace = pace or Pace()
        self._plugin = DevicePlugin(offer, self.news)
        self._server: HangUpServer | None = None
        self._path = Path()
        self._identity: Identity | None = None
        self._introduction: Introduction | None = None
        self._asked = 0
        self._kubelet: Identity | None = None  # the socket that was registered with
        self._known = 0.0  # since when the kubelet knows of the plugin, or could
        self._followed = False  # since then
        self._pause = 0.0
        self._not_before = 0.0
        self._complaint = ""

    @property
    def path(self) -> Path | None:
        """Its socket, while it has one."""
        return self._path if self._server is not None else None

    @property
    def connected(self) -> bool:
        """Whether a kubelet follows the pool now."""
        return self._plugin.streams > 0

    async def run(self) -> None:
        """Serve and stay registered until cancelled."""
        pace = self._pace
        try:
            while True:
                seen = self.news.rung
                wait = pace.period
                try:
                    await self._keep()
                    wait = min(wait, max(self._due() - anyio.current_time(), 0.01))
                except KubeletError as error:
                    wait = self._failed(error)
                with anyio.move_on_after(wait):
                    await self.news.wait(seen)
        finally:
            await self._close()

    async def _keep(self) -> None:
        """Put right whatever is not as it should be.

        :raises KubeletError: it cannot be put right now.
        """
        await self._give_way()
        if self._server is None or identity(self._path) != self._identity:
            if self._server is not None:
                logger.warning("%s: the socket %s is gone; making it anew", self.offer.resource, self._path)
            await self._open()
        self._note()
        now = anyio.current_time()
        if self._introduction is None:
            kubelet = identity(self._directory / PLUGINS / "kubelet.sock")
            restarted = kubelet is not None and kubelet != self._kubelet
            if restarted or (kubelet is not None and now >= max(self._due(), self._not_before)):
                await self._register()
                self._kubelet = kubelet
        elif now >= max(self._due(), self._not_before):
            refusal = self._introduction.refusal
            self._delay()
            await self._open()  # a new socket is what makes the kubelet look again
            if refusal:
                raise KubeletError(f"the kubelet does not take {self.offer.resource}: {refusal}")

    async def _give_way(self) -> None:
        """Two plugins that take one resource from each other again and again serve nobody.

        :raises KubeletError: another one serves it.
        """
        rival = self._find_rival()
        if rival is None and self._server is not None and identity(self._path) not in (None, self._identity):
            await anyio.sleep(self._pace.first)  # somebody else's, who may be about to listen
            rival = self._find_rival()
        if rival is None and self.rival is not None:
            logger.info("%s: nobody else serves it any more", self.offer.resource)
        self.rival = rival
        if rival is not None:
            await self._close()
            raise KubeletError(
                f"another device plugin serves {self.offer.resource} on {rival}: this one does not meanwhile",
                hint="take that plugin off this node, or this pool out of the configuration",
            )

    def _find_rival(self) -> Rival | None:
        directories = (self._directory / PLUGINS, self._directory / WATCHED)
        return rival_of(self.offer.resource, directories, own=self._identity if self._server is not None else None)

    def _note(self) -> None:
        """Keep in mind what the kubelet has done since."""
        if self.connected:
            if not self._followed:
                logger.info("%s: the kubelet follows %d devices", self.offer.resource, len(self.offer.devices))
            self._followed, self._pause, self._complaint = True, 0.0, ""
        elif self._followed:
            logger.warning("%s: the kubelet does not follow any more; registering again", self.offer.resource)
            self._followed = False
            # As if it had been known for so long that only `settle` is left to wait.
            self._known = anyio.current_time() - self._pace.patience + self._pace.settle
        if self._introduction is not None and self._introduction.asked != self._asked:
            self._asked = self._introduction.asked
            self._known = anyio.current_time()

    def _due(self) -> float:
        """When it is time to register again, if nothing happens until then."""
        if self.connected:
            return float("inf")
        if self._introduction is not None and self._introduction.refusal:
            return self._not_before
        return max(self._known + self._pace.patience, self._not_before)

    def _delay(self) -> None:
        pace = self._pace
        self._pause = min(max(self._pause * 2, pace.first), pace.longest)
        self._not_before = anyio.current_time() + self._pause

    def _failed(self, error: KubeletError) -> float:
        """Seconds to wait. The log has each failure once, and how it ended."""
        self.offer.counts.registration_failures += 1
        level = logging.DEBUG if str(error) == self._complaint else logging.WARNING
        self._complaint = str(error)
        logger.log(level, "%s: %s", self.offer.resource, error)
        if self._not_before <= anyio.current_time():
            self._delay()
        return max(self._not_before - anyio.current_time(), 0.01)

    async def _open(self) -> None:
        """Serve on a fresh socket.

        :raises KubeletError: there can be none.
        """
        await self._close()
        watched = self._directory / WATCHED
        found = self._mode == "watched" or (self._mode == "auto" and watched.is_dir())
        directory = watched if found else self._directory / PLUGINS
        path = directory / socket_name(self.offer.resource, directory)
        self._introduction = Introduction(self.offer.resource, self.news) if found else None
        self._plugin = DevicePlugin(self.offer, self.news)  # streams of the socket before do not count
        server = HangUpServer([self._plugin, *([self._introduction] if self._introduction else [])])
        try:
            with anyio.CancelScope(shield=True):  # asyncio would leave the socket open when it is called off
                await server.start(path=str(path))
        except OSError as error:
            raise KubeletError(
                f"no socket {path}: {error.strerror or error}",
                hint="is the kubelet running, and its directory mounted into this pod?",
            ) from None
        self._server, self._path, self._identity = server, path, identity(path)
        self._known, self._followed, self._asked, self._kubelet = anyio.current_time(), False, 0, None

    async def _close(self) -> None:
        server, self._server = self._server, None
        if server is None:
            return
        if identity(self._path) == self._identity:
            with contextlib.suppress(OSError):
                self._path.unlink()
        with anyio.move_on_after(_CLOSING, shield=True):
            await self._plugin.close()  # grpclib would cancel the streams and leave the kubelet waiting for more
        server.close()
        server.hang_up()
        with anyio.move_on_after(_CLOSING, shield=True):
            await server.wait_closed()

    async def _register(self) -> None:
        """Tell the kubelet of the plugin.

        :raises KubeletError: it did not answer in time, or refused.
        """
        socket = self._directory / PLUGINS / "kubelet.sock"
        request = api.RegisterRequest(
            version=VERSION, endpoint=self._path.name, resource_name=self.offer.resource, options=options()
        )
        errors: list[Exception] = []

        async def call() -> None:
            # A task of its own: see PodResources, a connection that breaks leaves the caller counted as cancelled.
            try:
                async with Channel(path=str(socket)) as channel:
                    await deviceplugin_grpc.RegistrationStub(channel).Register(request, timeout=self._pace.call)
            except Exception as error:
                errors.append(error)

        with anyio.move_on_after(self._pace.call) as scope:
            async with anyio.create_task_group() as group:
                group.start_soon(call)
        if scope.cancelled_caught:
            raise KubeletError(f"the kubelet at {socket} did not answer Register within {self._pace.call:g} s")
        for error in errors:
            words = f"{error.status.name}: {error.message}" if isinstance(error, GRPCError) else repr(error)
            raise KubeletError(f"the kubelet at {socket} does not take {self.offer.resource}: {words[:300]}") from None
        self._known, self._followed = anyio.current_time(), False
        self._delay()
        self.offer.counts.registrations += 1
        logger.info("%s: registered with the kubelet at %s", self.offer.resource, socket)
