"""The chained plugin `tuning`, done over netlink: sysctls of the pod, and MAC, MTU and flags of its interface.

Source of what it does: containernetworking/plugins 1.1. Before it changes an interface it writes down what that was,
in the program's own form and place, and DEL brings it back: either may undo what the other did. What it does otherwise:
DEL forgets what it wrote down of an interface that is gone. An allowlist of sysctls, and CHECK, are the program's.
"""

import errno
import json
import logging
import os
import re
import socket
from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

import anyio.to_thread
import msgspec

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux import link_changes, netdevs, netns, rtnetlink
from multus.cni.errors import Code
from multus.cni.request import Command
from multus.cni.result import Result, parse_result
from multus.delegates.chain import Delegate
from multus.delegates.native import reading
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call, PluginError

logger = logging.getLogger(__name__)

_DATA: Final = "/run/cni/tuning"
_ALLOWLIST: Final = "/etc/cni/tuning/allowlist.conf"
_SYSCTL = re.compile(r"net(\.[a-zA-Z0-9_-]+)+")
_KNOWN: Final = (
    *("cniVersion", "name", "type", "capabilities", "args", "runtimeConfig", "dns", "ipam", "prevResult"),
    *("dataDir", "sysctl", "mac", "promisc", "mtu", "allmulti"),
)
_ARGS: Final = ("sysctl", "mac", "promisc", "mtu", "allmulti", "txQLen")


class TuningConf(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration. `sysctls` are paths below /proc/sys/net and their values; `mac` "", `mtu` 0 and None are as is.

    `backup` is the file that keeps what the interface was.
    """

    version: str
    sysctls: tuple[tuple[str, str], ...]
    mac: str
    mtu: int
    promisc: bool
    allmulti: bool | None
    backup: Path
    previous: bytes

    @property
    def changes_interface(self) -> bool:
        """Whether the interface becomes another, beside sysctls."""
        return bool(self.mac or self.mtu or self.promisc or self.allmulti is not None)


class _Kept(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What an interface was, of that which was changed; the program's own keys."""

    mac: str = ""
    promisc: bool | None = None
    mtu: int = 0
    allmulti: bool | None = None


class Tuning:
    """A delegate (see `multus.delegates.chain`). `runner` runs the program; `root` is the root directory of paths."""

    def __init__(self, runner: Delegate, *, root: str = "") -> None:
        self._runner = runner
        self._root = root

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            conf = read_tuning(call, self._root)
        except Unsupported as reason:
            logger.debug("plugin %s: %s is not done here: %s", plugin, call.command, reason)
            return await self._runner(plugin, call)
        if call.command is Command.DEL:
            await anyio.to_thread.run_sync(_restore, conf, call)
            return b""
        result = parse_result(conf.previous, where="prevResult", version=conf.version)
        try:
            if not await anyio.to_thread.run_sync(_tune, conf, call, self._root):
                return await self._runner(plugin, call)  # nothing is changed yet that it would not change
        except KernelError as error:
            said = os.strerror(error.code).lower()  # as the program says it, and nothing else
            raise PluginError(plugin, call.command, Code.INTERNAL, said, error.message, hint=error.hint) from None
        return printed(_with_mac(result, call.ifname, conf.mac), conf.version)


def read_tuning(call: Call, root: str = "") -> TuningConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    found = reading.members(call.conf, _KNOWN, only=True)
    given = reading.arguments(call.args)
    runtime = reading.members(found["runtimeConfig"], ("mac",)) if "runtimeConfig" in found else {}
    by_args = reading.members(found["args"], ("cni",)) if "args" in found else {}
    if "cni" in by_args and any(key in _ARGS for key in reading.members(by_args["cni"], _ARGS)):
        raise Unsupported("args.cni")
    mac = reading.mac(runtime) or given.get("MAC", "") or reading.mac(found)
    data = reading.optional(found, "dataDir", str, "") or _DATA
    conf = TuningConf(
        version=reading.optional(found, "cniVersion", str, ""),
        sysctls=tuple(_sysctls(found["sysctl"], call.ifname)) if "sysctl" in found else (),
        mac=mac,
        mtu=reading.optional(found, "mtu", int, 0),
        promisc=reading.optional(found, "promisc", bool, False),
        allmulti=reading.optional(found, "allmulti", bool | None, None),  # type: ignore[arg-type]
        backup=Path(f"{root}{data}") / f"{call.container_id}_{call.ifname}.json",
        previous=bytes(found.get("prevResult", b"")),
    )
    if conf.version not in reading.VERSIONS or not reading.is_mac(mac) or not 0 <= conf.mtu < 2**31:
        raise Unsupported("version, mac or mtu")
    if not data.startswith("/") or (call.command is Command.ADD and not conf.previous):
        raise Unsupported("dataDir, or no prevResult")
    if os.path.lexists(f"{root}{_ALLOWLIST}"):
        raise Unsupported("an allowlist")
    return conf


def _sysctls(data: msgspec.Raw, ifname: str) -> list[tuple[str, str]]:
    """Names below /proc/sys/net, in order, and values; one that is there twice is for the program to judge."""
    pairs: list[tuple[str, Any]] = json.loads(bytes(data), object_pairs_hook=list)
    if not bytes(data).startswith(b"{") or len(dict(pairs)) != len(pairs):
        raise Unsupported("sysctl")
    found = []
    for key, text in pairs:
        if not isinstance(text, str) or not _SYSCTL.fullmatch(key):
            raise Unsupported(f"sysctl {key!r:.60}")
        name = key.removeprefix("net.").replace(".", "/").replace("IFNAME", ifname, 1)
        if ".." in name.split("/"):
            raise Unsupported(f"sysctl {key!r:.60}")
        found.append((name, text))
    return found


def _tune(conf: TuningConf, call: Call, root: str) -> bool:
    """Carry it out; False when a sysctl or the interface cannot be had, of which the program tells in its own words.

    :raises KernelError: a change was refused after others were made.
    """
    try:
        return netns.run_in(call.netns, _tune_inside, conf, call.ifname, root)
    except NamespaceError:
        return False


def _tune_inside(conf: TuningConf, ifname: str, root: str) -> bool:
    for name, value in conf.sysctls:
        try:
            with open(f"{root}/proc/sys/net/{name}", "wb", buffering=0) as file:  # noqa: PTH123 (as in link_changes)
                file.write(value.encode())
        except (OSError, ValueError):
            return False
    if not conf.changes_interface:
        return True
    with rtnetlink.connect() as connection:
        found = link_changes.find(connection, ifname)
        if found is None:
            return False
        _keep(conf, found)
        changes = _Kept(mac=conf.mac, promisc=conf.promisc or None, mtu=conf.mtu, allmulti=conf.allmulti)
        for change in _steps(connection, found.index, changes, order=("mac", "promisc", "mtu", "allmulti")):
            change()
    return True


def _keep(conf: TuningConf, found: link_changes.Found) -> None:
    """Write down what is going to be changed, as the program does."""
    kept = _Kept(
        mac=found.mac if conf.mac else "",
        promisc=found.promiscuous if conf.promisc else None,
        mtu=found.mtu if conf.mtu else 0,
        allmulti=found.allmulti if conf.allmulti is not None else None,
    )
    try:
        conf.backup.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(conf.backup, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(json.dumps(msgspec.to_builtins(kept), indent=1).encode())
    except OSError as error:
        what = f"failed to save file {conf.backup.name}"
        raise KernelError(what, error.errno or 0, error.strerror or str(error)) from None


def _steps(connection: socket.socket, index: int, wanted: _Kept, *, order: tuple[str, ...]) -> list[partial[None]]:
    """The changes that are wanted, each one request, in an order of keys."""
    mac, mtu = netdevs.Change(mac=wanted.mac), netdevs.Change(mtu=wanted.mtu)
    made: Mapping[str, partial[None] | None] = {
        "mac": partial(netdevs.change, connection, index, mac) if wanted.mac else None,
        "mtu": partial(netdevs.change, connection, index, mtu) if wanted.mtu else None,
        "promisc": None
        if wanted.promisc is None
        else partial(link_changes.set_flag, connection, index, link_changes.PROMISC, wanted.promisc),
        "allmulti": None
        if wanted.allmulti is None
        else partial(link_changes.set_flag, connection, index, link_changes.ALLMULTI, wanted.allmulti),
    }
    return [step for key in order if (step := made[key]) is not None]


def _restore(conf: TuningConf, call: Call) -> None:
    """Bring back what was written down, as well as it can be done: a DEL of this plugin never fails."""
    try:
        kept = msgspec.json.decode(conf.backup.read_bytes(), type=_Kept)
    except FileNotFoundError:
        return
    except (OSError, msgspec.DecodeError, UnicodeDecodeError) as error:
        logger.warning("tuning: %s cannot be brought back: %s", conf.backup, error)
        return
    try:
        done = netns.run_in(call.netns, _restore_inside, call.ifname, kept) if call.netns else True
    except NamespaceError as error:
        done = error.gone
    except DeviceError as error:
        logger.warning("tuning: %s of %s is not brought back: %s", call.ifname, call.container_id, error)
        return
    if done:
        with suppress(OSError):
            conf.backup.unlink()


def _restore_inside(ifname: str, kept: _Kept) -> bool:
    """Whether all of it is as it was, or the interface is gone."""
    done = True
    with rtnetlink.connect() as connection:
        found = link_changes.find(connection, ifname)
        if found is None:
            return True
        for step in _steps(connection, found.index, kept, order=("mtu", "mac", "promisc", "allmulti")):
            try:
                step()
            except KernelError as error:
                done = error.code == errno.ENODEV and done
                logger.warning("tuning: %s: %s", ifname, error)
    return done


def _with_mac(result: Result, ifname: str, mac: str) -> Result:
    """The result with the interface's new MAC, as it is written in the configuration."""
    if not mac:
        return result
    interfaces = tuple(
        msgspec.structs.replace(each, mac=mac) if each.name == ifname else each for each in result.interfaces
    )
    return msgspec.structs.replace(result, interfaces=interfaces)
