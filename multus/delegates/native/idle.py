"""Chained plugins that have nothing to do for most pods: `portmap` without host ports, `bandwidth` without limits.

Source of what they do then: containernetworking/plugins 1.1. ADD answers with the result that it was given, DEL finds
nothing of theirs. With host ports or limits their programs are executed as ever.
"""

from collections.abc import Collection, Mapping
from typing import Final

import msgspec

from multus.cni.request import Command
from multus.cni.result import parse_result
from multus.delegates.chain import AtOnce, Delegate
from multus.delegates.native import reading
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call

_BASE: Final = ("cniVersion", "name", "type", "capabilities", "prevResult", "runtimeConfig", "args", "dns", "ipam")
_WORK: Final[Mapping[str, str]] = {"portmap": "portMappings", "bandwidth": "bandwidth"}
"""The runtime's argument that each works for, by type."""
_HARMLESS: Final[Mapping[str, Collection[str]]] = {
    "portmap": ("snat", "masqAll", "backend", "conditionsV4", "conditionsV6"),
    "bandwidth": (),
}
"""Keys that change nothing while there is nothing to do; any other is for the program to judge."""
_COMMANDS: Final = {
    "portmap": (Command.ADD, Command.CHECK, Command.DEL),
    "bandwidth": (Command.ADD, Command.DEL),  # its CHECK looks at the pod's interface all the same
}

TYPES: Final = tuple(_WORK)


class Idle:
    """A delegate (see `multus.delegates.chain`); `runner` runs the program when there is something to do."""

    def __init__(self, runner: Delegate) -> None:
        self._runner = runner

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        try:
            previous = _idle(plugin, call)
        except Unsupported:
            return await self._runner(plugin, call)
        return previous if call.command is Command.ADD else b""

    def at_once(self, plugin: str, call: Call) -> AtOnce | None:
        """As `multus.delegates.chain.Prompt`: an ADD that has nothing to do."""
        try:
            previous = _idle(plugin, call)
        except Unsupported:
            return None
        return lambda visit: parse_result(previous, where=f'plugin type="{plugin}"')


def _idle(plugin: str, call: Call) -> bytes:
    """The result that a call came with, b"" for none.

    :raises Unsupported: there is something to do, or to complain about.
    """
    found = reading.members(call.conf, (*_BASE, *_HARMLESS[plugin]), only=True)
    runtime = reading.members(found["runtimeConfig"], _WORK.values()) if "runtimeConfig" in found else {}
    work = runtime.get(_WORK[plugin])
    version = reading.optional(found, "cniVersion", str, "")
    if (
        call.command not in _COMMANDS[plugin]
        or version not in reading.VERSIONS
        or (work and reading.value(work, object))
    ):
        raise Unsupported("there is something to do")
    previous = found.get("prevResult", msgspec.Raw())
    if call.command is not Command.DEL:
        reading.members(previous, ())
    return bytes(previous)
