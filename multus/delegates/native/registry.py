"""Which plugins are done in this process, and how they find one another."""

import logging
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from multus.delegates.chain import Delegate
from multus.delegates.native.bridge import Bridge
from multus.delegates.native.host_device import HostDevice
from multus.delegates.native.host_local import HostLocal
from multus.delegates.native.idle import TYPES as IDLE
from multus.delegates.native.idle import Idle
from multus.delegates.native.interface import InterfacePlugin, Kind
from multus.delegates.native.ipam import Addresses, AddressPlugin
from multus.delegates.native.ipvlan import Ipvlan
from multus.delegates.native.macvlan import Macvlan
from multus.delegates.native.removal import Removals
from multus.delegates.native.static import Static
from multus.delegates.native.tuning import Tuning
from multus.delegates.native.vlan import Vlan

logger = logging.getLogger(__name__)

_KINDS: Final[Mapping[str, type[Kind[Any, Any]]]] = {
    "bridge": Bridge,
    "ipvlan": Ipvlan,
    "macvlan": Macvlan,
    "vlan": Vlan,
}
NATIVE: Final = tuple(sorted((*_KINDS, *IDLE, "host-device", "host-local", "static", "tuning")))
"""Types that can be done here."""

ORDERLESS: Final = frozenset(NATIVE) - {"host-device"}
"""Those whose DEL needs no other network of the pod, when they are done here."""

_ELF: Final = b"\x7fELF"


def chosen(wanted: Sequence[str] | None, *, bin_dir: str) -> tuple[str, ...]:
    """The types to be done here: all without a choice, or those that are named, or all but those named with a "-".

    One whose program in `bin_dir` is a script is left to that script: somebody has put it there for a reason.
    """
    names = set(NATIVE if wanted is None else wanted)
    without = {name[1:] for name in names if name.startswith("-")}
    named = {name for name in names if not name.startswith("-")}
    for unknown in sorted((named | without) - set(NATIVE)):
        logger.warning("nativeDelegates: %r is not done natively, only %s", unknown, ", ".join(NATIVE))
    found = []
    for name in NATIVE:
        if name in without or (named and name not in named) or not (named or without):
            continue
        if _is_script(Path(bin_dir, name)):
            logger.warning("%s/%s is a script: it is executed, and not done natively", bin_dir, name)
            continue
        found.append(name)
    return tuple(found)


def native_delegates(types: Collection[str], runner: Delegate, *, root: str = "") -> Mapping[str, Delegate]:
    """A delegate for each of the types; `runner` runs what is not done here.

    An interface's addresses come from the address plugin among them, or from its program when that was not chosen.
    `root` is the root directory of the paths in configurations, "" ours.
    """
    plugins: Mapping[str, AddressPlugin] = {"host-local": HostLocal(root=root), "static": Static()}
    ipam = Addresses(runner, {name: plugin for name, plugin in plugins.items() if name in types})
    removals = Removals()
    all_of_them: Mapping[str, Delegate] = {
        **ipam.delegates,
        **{name: InterfacePlugin(kind(root), runner, ipam=ipam, removals=removals) for name, kind in _KINDS.items()},
        "host-device": HostDevice(runner, ipam=ipam, root=root),
        "tuning": Tuning(runner, root=root),
        **dict.fromkeys(IDLE, Idle(runner)),
    }
    return {name: delegate for name, delegate in all_of_them.items() if name in types}


def _is_script(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(_ELF)) != _ELF
    except OSError:
        return False
