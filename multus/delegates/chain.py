"""One network: its plugins in order, each with the result of the one before, as libcni runs them.

Sources: CNI specification 1.1, section 4; libcni's api.go for which version has which command, and what it carries.
Nothing is stored here: the journal keeps what a DEL needs.
"""

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple, Protocol, runtime_checkable

import msgspec

from multus.cni.args import Pairs
from multus.cni.conf import ConfError, NetworkConf, Plugin, ipam_type, plugin_conf
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command, ValidAttachment
from multus.cni.result import Result, encode_result, parse_result
from multus.cni.versions import SUPPORTED, at_least, known
from multus.delegates.plugin import Call
from multus.delegates.visit import Visit
from multus.errors import MultusError
from multus.timeline import span

logger = logging.getLogger(__name__)

Delegate = Callable[[str, Call], Awaitable[bytes]]
"""Runs the named plugin and returns what it printed: a Runner, or code in this process."""

Note = Callable[[Result], Awaitable[None]]

AtOnce = Callable[[Visit], Result | None]
"""The work of an ADD, which blocks, but waits for nothing; None when it has done nothing and is to be run instead."""


@runtime_checkable
class Prompt(Protocol):
    """A delegate that does some ADDs without waiting for anything, on a visit to the pod."""

    def at_once(self, plugin: str, call: Call) -> AtOnce | None:
        """The work of a call, None for one that is to be run."""
        ...


class Stretch(NamedTuple):
    """The first plugins of a network, which are done: how many, whether they are all, and what they came to."""

    plugins: int = 0
    is_whole: bool = False
    result: Result | None = None


Begin = Callable[[Visit], Stretch]
"""Attaches as much of a network as waits for nothing; raises MultusError as an ADD does."""


NOTHING: Final = Stretch()


class Target(msgspec.Struct, frozen=True, kw_only=True):
    """What a network is attached to. `runtime` holds arguments by capability; `netns` is "" when it is gone."""

    container_id: str
    netns: str
    ifname: str
    args: Pairs = ()
    runtime: dict[str, Any] = {}


class Chain:
    """Runs networks. A type in `in_process` is done there, any other by `runner`; `bin_dirs` is where binaries are.

    The DEL of a type in `orderless` needs no other network of the pod, and none needs what it removes.
    """

    def __init__(
        self,
        runner: Delegate,
        *,
        in_process: Mapping[str, Delegate],
        bin_dirs: Callable[[], tuple[str, ...]],
        orderless: Collection[str] = (),
    ) -> None:
        self._runner = runner
        self._orderless = frozenset(orderless)
        self._in_process = in_process
        delegates: Mapping[str, object] = in_process
        self._prompt = {kind: each for kind, each in delegates.items() if isinstance(each, Prompt)}
        self._bin_dirs = bin_dirs

    async def add(
        self, conf: NetworkConf, target: Target, *, note: Note | None = None, begun: Stretch = NOTHING
    ) -> Result:
        """Attach, from the plugin where `begin` stopped; the last plugin's result. What was done is not undone here.

        `note` is told what the plugins have come to before each one that follows another.

        :raises ConfError: a network without a name or without plugins.
        :raises CNIError: a version that we do not know, a plugin's failure, or no result from it.
        """
        _usable(conf)
        result = begun.result
        for plugin in conf.plugins[begun.plugins :]:
            if result is not None and note is not None:
                await note(result)
            printed = await self._run(Command.ADD, conf, plugin, target, result)
            result = parse_result(printed, where=f'plugin type="{plugin.type}"', version=conf.cni_version)
        assert result is not None
        return result

    def begin(self, conf: NetworkConf, target: Target) -> Begin | None:
        """What attaches as much of a network as waits for nothing, on a visit to the pod; None for nothing of it."""
        try:
            _usable(conf)
            first = self._at_once(conf, conf.plugins[0], target, None)
        except MultusError:
            return None  # `add` is going to say it
        return None if first is None else partial(self._go_on, conf, target, first)

    def _go_on(self, conf: NetworkConf, target: Target, first: AtOnce, visit: Visit) -> Stretch:
        result: Result | None = None
        for number, plugin in enumerate(conf.plugins):
            work = first if number == 0 else self._at_once(conf, plugin, target, result)
            if work is None:
                return Stretch(number, False, result)
            with span("plugin", plugin.type, target.ifname):
                done = work(visit)
            if done is None:
                return Stretch(number, False, result)
            result = done
        return Stretch(len(conf.plugins), True, result)

    def _at_once(self, conf: NetworkConf, plugin: Plugin, target: Target, previous: Result | None) -> AtOnce | None:
        delegate = self._prompt.get(plugin.type)
        if delegate is None:
            return None
        return delegate.at_once(plugin.type, self._call(Command.ADD, conf, plugin, target, previous))

    async def delete(self, conf: NetworkConf, target: Target, previous: Result | None) -> None:
        """Detach: all plugins, last first, whatever fails; `previous` is the ADD's result, None when unknown.

        :raises MultusError: the first failure, after all were tried.
        """
        if not conf.name:
            return  # it was refused on ADD, here as in libcni
        understood = conf.cni_version in ("", *SUPPORTED)
        if not understood or not at_least(conf.cni_version, "0.4.0"):
            previous = None
        failures: list[MultusError] = []
        for plugin in reversed(conf.plugins):
            try:
                await self._run(Command.DEL, conf, plugin, target, previous)
            except MultusError as error:
                if not understood and isinstance(error, CNIError) and error.code == Code.INCOMPATIBLE_VERSION:
                    logger.info("network %s: %s: it never was attached, then", conf.name, error)
                    continue
                failures.append(error)
        _raise_first(conf, failures)

    def is_orderless(self, conf: NetworkConf) -> bool:
        """Whether its DEL may run beside those of the pod's other networks, whatever they stand on."""
        types = [each for plugin in conf.plugins for each in (plugin.type, ipam_type(plugin)) if each]
        return all(each in self._orderless for each in types)

    async def release(self, conf: NetworkConf, target: Target) -> None:
        """DEL of the address plugins alone, for a network whose own plugins cannot carry out a DEL.

        Some read the state of the node first, and so fail while a conf's master is missing, before they come to that.

        :raises MultusError: the first failure.
        """
        for plugin in reversed(conf.plugins):
            ipam = ipam_type(plugin)
            if ipam:
                stand_in = msgspec.structs.replace(plugin, type=ipam)
                await self._run(Command.DEL, conf, stand_in, target, None)

    async def check(self, conf: NetworkConf, target: Target, previous: Result | None) -> None:
        """CHECK every plugin; nothing for a network before 0.4.0, which knows no CHECK, or with disableCheck.

        :raises ConfError: a network without a name or without plugins.
        :raises MultusError: of the first plugin that is not content.
        """
        if conf.disable_check or not at_least(conf.cni_version, "0.4.0"):
            return
        _usable(conf)
        for plugin in conf.plugins:
            await self._run(Command.CHECK, conf, plugin, target, previous)

    async def status(self, conf: NetworkConf, path: Sequence[str]) -> None:
        """Ask every plugin whether it could serve an ADD; nothing before 1.1.0. `path` is the runtime's CNI_PATH.

        :raises ConfError: a network without a name or without plugins.
        :raises MultusError: of the first plugin that could not, with its own code (50, 51).
        """
        if not at_least(conf.cni_version, "1.1.0"):
            return
        _usable(conf)
        for plugin in conf.plugins:
            await self._run_on_node(Command.STATUS, conf, plugin, path)

    async def gc(self, conf: NetworkConf, attachments: Sequence[ValidAttachment], path: Sequence[str]) -> None:
        """Let every plugin drop what is not in `attachments`; nothing before 1.1.0, or with disableGC.

        :raises ConfError: a network without a name or without plugins.
        :raises MultusError: the first failure, after all were tried.
        """
        if conf.disable_gc or not at_least(conf.cni_version, "1.1.0"):
            return
        _usable(conf)
        valid = list(attachments)
        # The second is what libcni wrote before it followed the specification; plugins are built with either.
        extra = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
        failures: list[MultusError] = []
        for plugin in conf.plugins:
            try:
                await self._run_on_node(Command.GC, conf, plugin, path, extra)
            except MultusError as error:
                failures.append(error)
        _raise_first(conf, failures)

    async def _run(
        self, command: Command, conf: NetworkConf, plugin: Plugin, target: Target, previous: Result | None
    ) -> bytes:
        call = self._call(command, conf, plugin, target, previous)
        with span("plugin", plugin.type, target.ifname):
            return await self._delegate(plugin)(plugin.type, call)

    def _call(
        self, command: Command, conf: NetworkConf, plugin: Plugin, target: Target, previous: Result | None
    ) -> Call:
        encoded = encode_result(previous, conf.cni_version) if previous is not None else None
        return Call(
            command=command,
            conf=plugin_conf(conf, plugin, prev_result=encoded, runtime=target.runtime),
            container_id=target.container_id,
            netns=target.netns,
            ifname=target.ifname,
            args=target.args,
            path=self._bin_dirs(),
            followed_by=following(conf, plugin) if command is Command.CHECK else (),
        )

    async def _run_on_node(
        self, command: Command, conf: NetworkConf, plugin: Plugin, path: Sequence[str], extra: Mapping[str, object] = {}
    ) -> None:
        call = Call(
            command=command,
            conf=plugin_conf(conf, plugin, prev_result=None, runtime={}, extra=extra),
            path=tuple(dict.fromkeys((*self._bin_dirs(), *path))),
        )
        await self._delegate(plugin)(plugin.type, call)

    def _delegate(self, plugin: Plugin) -> Delegate:
        return self._in_process.get(plugin.type, self._runner)


def following(conf: NetworkConf, plugin: Plugin) -> tuple[str, ...]:
    """The types of the plugins that come after one of a network's."""
    return tuple(each.type for each in conf.plugins[conf.plugins.index(plugin) + 1 :])


def _usable(conf: NetworkConf) -> None:
    if not conf.name:
        raise ConfError("missing network name", hint='"name" must be in the network\'s configuration')
    if not conf.plugins:
        raise ConfError(f'network "{conf.name}" has no plugins', hint="it needs one at least")
    known(conf.cni_version, f'network "{conf.name}"')


def _raise_first(conf: NetworkConf, failures: Sequence[MultusError]) -> None:
    for error in failures[1:]:
        logger.warning("network %s: %s", conf.name, error)
    if failures:
        raise failures[0]
