"""Which plugins can be done in this process, and how they find one another."""

import logging
from collections.abc import Collection, Mapping
from typing import Final

from multus.delegates.chain import Delegate
from multus.delegates.native.bridge import Bridge
from multus.delegates.native.host_local import HostLocal
from multus.delegates.native.idle import TYPES as IDLE
from multus.delegates.native.idle import Idle
from multus.delegates.native.macvlan import Macvlan
from multus.delegates.native.removal import Removals
from multus.delegates.native.static import Static
from multus.delegates.plugin import Call
from multus.timeline import span

logger = logging.getLogger(__name__)

NATIVE: Final = tuple(sorted(("bridge", "host-local", "macvlan", "static", *IDLE)))
"""Types that can be chosen."""


def native_delegates(types: Collection[str], runner: Delegate, *, root: str = "") -> Mapping[str, Delegate]:
    """A delegate for each of the types that there is one for; `runner` runs what is not done here.

    An interface's addresses come from the address plugin among them, or from its program when that was not chosen.
    `root` is the root directory of the paths in configurations, "" ours.
    """
    for unknown in sorted(set(types) - set(NATIVE)):
        logger.warning("nativeDelegates: %r is not done natively, only %s", unknown, ", ".join(NATIVE))
    address_plugins: Mapping[str, Delegate] = {"host-local": HostLocal(runner, root=root), "static": Static(runner)}
    chosen = {name: delegate for name, delegate in address_plugins.items() if name in types}

    async def ipam(plugin: str, call: Call) -> bytes:
        with span("ipam", plugin, call.ifname):
            return await chosen.get(plugin, runner)(plugin, call)

    removals = Removals()
    interfaces: Mapping[str, Delegate] = {
        "bridge": Bridge(runner, ipam=ipam, removals=removals),
        "macvlan": Macvlan(runner, ipam=ipam, removals=removals),
        **dict.fromkeys(IDLE, Idle(runner)),
    }
    return {**chosen, **{name: delegate for name, delegate in interfaces.items() if name in types}}
