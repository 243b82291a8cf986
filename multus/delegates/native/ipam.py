"""Where an interface's addresses come from: an address plugin that is done here, or a program."""

from collections.abc import Mapping
from typing import Protocol

import anyio.to_thread

from multus.cni.request import Command
from multus.cni.result import Result
from multus.delegates.chain import Delegate
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call
from multus.timeline import span


class Lease(Protocol):
    """The addresses of one interface. Both methods block, and raise MultusError as the plugin would fail."""

    version: str
    settles: bool
    """Whether the addresses may take time until they are usable: those of IPv6."""

    def take(self) -> Result:
        """Take them: what the plugin would print. Nothing is taken by one that fails."""

    def give_back(self) -> None:
        """Give back whatever the interface has, which may be nothing."""


class AddressPlugin(Protocol):
    """An address plugin that is done here."""

    def lease(self, plugin: str, call: Call) -> Lease:
        """What a call asks for; `plugin` is what it is called.

        :raises Unsupported: a configuration for the program.
        """


class Native:
    """An address plugin as a delegate of its own (see `multus.delegates.chain`); `runner` runs the program."""

    def __init__(self, runner: Delegate, plugin: AddressPlugin) -> None:
        self._runner = runner
        self._plugin = plugin

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            lease = self._plugin.lease(plugin, call)
        except Unsupported:
            return await self._runner(plugin, call)
        if call.command is Command.DEL:
            await anyio.to_thread.run_sync(lease.give_back)
            return b""
        return printed(await anyio.to_thread.run_sync(lease.take), lease.version)


class Addresses:
    """The address plugins of this node: those in `plugins` are done here, `runner` runs any other."""

    def __init__(self, runner: Delegate, plugins: Mapping[str, AddressPlugin]) -> None:
        self._runner = runner
        self._plugins = plugins
        self.delegates: Mapping[str, Delegate] = {name: Native(runner, plugin) for name, plugin in plugins.items()}

    def lease(self, kind: str, call: Call) -> Lease | None:
        """What a call asks of an address plugin, when that is done here."""
        if kind not in self._plugins:
            return None
        try:
            return self._plugins[kind].lease(kind, call)
        except Unsupported:
            return None

    async def __call__(self, kind: str, call: Call) -> bytes:
        """Carry out a call of an address plugin, wherever it is done.

        :raises MultusError: as the program.
        """
        with span("ipam", kind, call.ifname):
            return await self.delegates.get(kind, self._runner)(kind, call)
