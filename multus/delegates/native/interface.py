"""The frame of the plugins that make an interface in the pod; what each does itself is its `Kind`.

With addresses that are chosen here too, an ADD is one visit to the pod, shared with the pod's others when nothing has
to be waited for; a DEL shares one always. What fails half way is undone before it is told.
"""

import logging
from abc import ABC, abstractmethod
from contextlib import suppress
from functools import partial
from typing import ClassVar, Generic, TypeVar

import msgspec

from devices.errors import DeviceError
from devices.linux import link_changes
from multus.cni.request import Command
from multus.cni.result import DNS, Interface, Result
from multus.delegates.chain import AtOnce, Delegate
from multus.delegates.native import pod_side
from multus.delegates.native.ipam import Addresses, Lease
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.native.removal import Removals
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit
from multus.errors import MultusError
from multus.timeline import span

logger = logging.getLogger(__name__)


class Conf(msgspec.Struct, frozen=True, kw_only=True):
    """What every configuration has; `ipam` is "" for no addresses."""

    version: str
    ipam: str
    dns: DNS


C = TypeVar("C", bound=Conf)
M = TypeVar("M")


class Kind(ABC, Generic[C, M]):
    """What one plugin does itself: `C` is its configuration, `M` what it knows of an interface that it made.

    Methods block, and raise DeviceError when the kernel refuses. `root` is the root directory below which /proc is.
    """

    position: ClassVar[int] = 0
    """Of the pod's interface among those of the result."""
    sysctls: ClassVar[pod_side.Sysctls] = ()
    """Set when there are addresses."""

    def __init__(self, root: str = "") -> None:
        self.root = root

    @abstractmethod
    def read(self, call: Call) -> C:
        """The configuration of a call.

        :raises Unsupported: one for the program.
        """

    @abstractmethod
    def create(self, conf: C, call: Call, visit: Visit) -> M | None:
        """Make the interface, or leave nothing of it; None when it cannot be begun: the program says what is wrong."""

    def adjust(self, conf: C, given: Result) -> Result:
        """What the address plugin gave, as this plugin gives it on."""
        return given

    def finish(self, conf: C, call: Call, made: M, given: Result, found: link_changes.Found, visit: Visit) -> Result:
        """What is to be done when the interface has its addresses and is up; the plugin's result."""
        interface = Interface(name=call.ifname, mac=found.mac, sandbox=call.netns)
        return Result(interfaces=(interface,), ips=given.ips, routes=given.routes, dns=conf.dns)


class _Waiting(msgspec.Struct, Generic[M], kw_only=True):
    """An interface whose addresses are not yet usable."""

    made: M
    given: Result
    found: link_changes.Found


class InterfacePlugin(Generic[C, M]):
    """A delegate (see `multus.delegates.chain`). `runner` runs the program for what is not done here."""

    def __init__(self, kind: Kind[C, M], runner: Delegate, *, ipam: Addresses, removals: Removals) -> None:
        self._kind = kind
        self._runner = runner
        self._ipam = ipam
        self._removals = removals

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            conf = self._kind.read(call)
        except Unsupported as reason:
            logger.debug("plugin %s: %s is not done here: %s", plugin, call.command, reason)
            return await self._runner(plugin, call)
        lease = self._ipam.lease(conf.ipam, call) if conf.ipam else None
        if call.command is Command.DEL:
            await self._delete(plugin, conf, call, lease)
            return b""
        if conf.ipam and lease is None:
            result = await self._by_steps(plugin, conf, call)
        else:
            result = await self._alone(plugin, conf, call, lease)
        return printed(result, conf.version) if result is not None else await self._runner(plugin, call)

    def at_once(self, plugin: str, call: Call) -> AtOnce | None:
        """As `multus.delegates.chain.Prompt`: an ADD with addresses that are chosen here and usable immediately."""
        if call.command is not Command.ADD:
            return None
        try:
            conf = self._kind.read(call)
        except Unsupported:
            return None
        lease = self._ipam.lease(conf.ipam, call) if conf.ipam else None
        if conf.ipam and (lease is None or lease.settles):
            return None
        return partial(self._in_visit, plugin, conf, call, lease)

    def _in_visit(self, plugin: str, conf: C, call: Call, lease: Lease | None, visit: Visit) -> Result | None:
        with pod_side.told(plugin, call):
            done = self._stand(plugin, conf, call, lease, visit)
        assert not isinstance(done, _Waiting), f"{conf.ipam} gave what has to be waited for"
        return done

    async def _alone(self, plugin: str, conf: C, call: Call, lease: Lease | None) -> Result | None:
        """In a visit of its own. None when the program has to say what is wrong."""
        done = await pod_side.visit(plugin, call, partial(self._stand, plugin, conf, call, lease))
        if not isinstance(done, _Waiting):
            return done
        try:
            return await self._settled(plugin, conf, call, done)
        except BaseException:
            await pod_side.undo(plugin, self._ipam, conf.ipam, call)
            raise

    def _stand(
        self, plugin: str, conf: C, call: Call, lease: Lease | None, visit: Visit
    ) -> Result | _Waiting[M] | None:
        """All that can be done without waiting; nothing is left of what fails."""
        made = self._kind.create(conf, call, visit)
        if made is None:
            return None
        taken = False
        try:
            given = Result()
            if lease is not None:
                with span("ipam", conf.ipam, call.ifname):
                    given = lease.take()
                taken = True
                given = pod_side.placed(plugin, given, call, interface=self._kind.position)
            return self._configure(conf, call, made, given, visit)
        except BaseException:
            if lease is not None and taken:
                with suppress(MultusError):
                    lease.give_back()
            with suppress(DeviceError):
                pod_side.remove(call)
            raise

    async def _by_steps(self, plugin: str, conf: C, call: Call) -> Result | None:
        """With a program for the addresses, which may take its time."""
        made = await pod_side.visit(plugin, call, partial(self._kind.create, conf, call))
        if made is None:
            return None
        answered = False
        try:
            answer = await self._ipam(conf.ipam, call)
            answered = True  # before, it refused: what the container had is not this call's to give back
            given = pod_side.addresses(
                plugin, conf.ipam, answer, call, version=conf.version, interface=self._kind.position
            )
            done = await pod_side.visit(plugin, call, partial(self._configure, conf, call, made, given))
            return await self._settled(plugin, conf, call, done) if isinstance(done, _Waiting) else done
        except BaseException:
            await pod_side.undo(plugin, self._ipam, conf.ipam if answered else "", call)
            raise

    def _configure(self, conf: C, call: Call, made: M, given: Result, visit: Visit) -> Result | _Waiting[M]:
        given = self._kind.adjust(conf, given)
        sysctls = self._kind.sysctls if given.ips else ()
        found = pod_side.bring_up(visit, call.ifname, given, sysctls, self._kind.root)
        if pod_side.waits(given):
            return _Waiting(made=made, given=given, found=found)
        return self._kind.finish(conf, call, made, given, found, visit)

    async def _settled(self, plugin: str, conf: C, call: Call, half: _Waiting[M]) -> Result:
        await pod_side.settle(plugin, call, half.found.index, half.given)
        return await pod_side.visit(
            plugin, call, partial(self._kind.finish, conf, call, half.made, half.given, half.found)
        )

    async def _delete(self, plugin: str, conf: C, call: Call, lease: Lease | None) -> None:
        """The interface first: its addresses are nobody else's before it is gone."""
        if not call.netns:
            if conf.ipam:
                await self._ipam(conf.ipam, call)
            return
        with self._removals.announced(call.netns):
            await self._removals.remove(plugin, call, after=lease.give_back if lease is not None else None)
        if conf.ipam and lease is None:
            await self._ipam(conf.ipam, call)
