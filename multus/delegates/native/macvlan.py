"""The plugin `macvlan`, done over netlink: one interface on a master of the node, with what its address plugin says.

Source of what it does: containernetworking/plugins 1.1. What it does otherwise: after a failed ADD the interface and
the addresses are gone, and DEL does not need the master. CHECK is the program's.
"""

import errno
import logging
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Final

import msgspec

from devices.errors import KernelError
from devices.linux import link_changes, netdevs, netns, rtnetlink
from multus.cni.request import Command
from multus.cni.result import DNS, Interface, Result
from multus.delegates.chain import Delegate
from multus.delegates.native import reading
from multus.delegates.native.pod_side import addresses, configure, do, undo
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.native.removal import Removals
from multus.delegates.plugin import Call

logger = logging.getLogger(__name__)

_SYSCTLS: Final = (("ipv4/conf/{}/arp_notify", "1"),)
_KNOWN: Final = (
    *("cniVersion", "name", "type", "master", "mode", "mtu", "mac", "ipam", "dns", "args", "runtimeConfig"),
    *("capabilities", "prevResult"),
)


class MacvlanConf(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration; `mtu` 0 is the master's, `mac` "" the kernel's choice, `ipam` "" for no addresses."""

    version: str
    master: str
    mode: str
    mtu: int
    mac: str
    ipam: str
    dns: DNS


class Macvlan:
    """A delegate (see `multus.delegates.chain`). `runner` runs the program, `ipam` the address plugin."""

    def __init__(self, runner: Delegate, *, ipam: Delegate, removals: Removals) -> None:
        self._runner = runner
        self._removals = removals
        self._ipam = ipam

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            conf = read_macvlan(call)
        except Unsupported as reason:
            logger.debug("plugin %s: %s is not done here: %s", plugin, call.command, reason)
            return await self._runner(plugin, call)
        if call.command is Command.DEL:
            await self._delete(plugin, conf, call)
            return b""
        if not await do(plugin, call, _create, conf, call):
            return await self._runner(plugin, call)
        return printed(await self._add(plugin, conf, call), conf.version)

    async def _add(self, plugin: str, conf: MacvlanConf, call: Call) -> Result:
        """All after the interface is made; it is gone again after a failure."""
        answered = False
        given = Result()
        try:
            if conf.ipam:
                answer = await self._ipam(conf.ipam, call)
                answered = True  # before, it refused: what the container had is not this call's to give back
                given = addresses(plugin, conf.ipam, answer, call, version=conf.version, interface=0)
            found = await configure(plugin, call, given, sysctls=_SYSCTLS if given.ips else ())
        except BaseException:
            await undo(plugin, self._ipam, conf.ipam if answered else "", call)
            raise
        interface = Interface(name=call.ifname, mac=found.mac, sandbox=call.netns)
        return Result(interfaces=(interface,), ips=given.ips, routes=given.routes, dns=conf.dns)

    async def _delete(self, plugin: str, conf: MacvlanConf, call: Call) -> None:
        if not call.netns:
            if conf.ipam:
                await self._ipam(conf.ipam, call)
            return
        with self._removals.announced(call.netns):
            if conf.ipam:
                await self._ipam(conf.ipam, call)
            await self._removals.remove(plugin, call)


def read_macvlan(call: Call) -> MacvlanConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    found = reading.members(call.conf, _KNOWN, only=True)
    given = reading.arguments(call.args)
    runtime = reading.members(found["runtimeConfig"], ("mac",)) if "runtimeConfig" in found else {}
    mac = reading.mac(runtime) or given.get("MAC", "") or reading.mac(found)
    conf = MacvlanConf(
        version=reading.optional(found, "cniVersion", str, ""),
        master=reading.optional(found, "master", str, ""),
        mode=reading.optional(found, "mode", str, "") or "bridge",
        mtu=reading.optional(found, "mtu", int, 0),
        mac=mac,
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or conf.mode not in link_changes.MACVLAN_MODES:
        raise Unsupported("version or mode")
    if not conf.master or not 0 <= conf.mtu < 2**31 or not reading.is_mac(mac):
        raise Unsupported("master, mtu or mac")
    return conf


def _create(conf: MacvlanConf, call: Call) -> bool:
    """Make the interface; False when it cannot be begun: the program then says what is wrong."""
    with rtnetlink.connect() as connection:
        master = link_changes.find(connection, conf.master)
        if master is None or conf.mtu > master.mtu or netns.identity(call.netns) is None:
            return False
        try:
            namespace = os.open(call.netns, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            make = partial(
                link_changes.create_macvlan,
                connection,
                master=master.index,
                mode=conf.mode,
                namespace=namespace,
                mtu=conf.mtu,
                mac=conf.mac,
            )
            try:
                make(name=call.ifname)
            except KernelError as error:
                if error.code != errno.EEXIST:
                    raise
                # The kernel looks for the name on the node as well, where one of that name is no obstacle.
                _make_renamed(make, call)
        finally:
            os.close(namespace)
    return True


def _make_renamed(make: Callable[..., None], call: Call) -> None:
    name = f"veth{os.urandom(4).hex()}"
    make(name=name)
    with netns.open_socket(call.netns) as inside:
        made = link_changes.find(inside, name)
        assert made is not None
        try:
            netdevs.change(inside, made.index, netdevs.Change(name=call.ifname))
        except KernelError as error:
            with suppress(KernelError):
                link_changes.delete(inside, name)
            what = f'failed to rename macvlan to "{call.ifname}"'
            raise KernelError(what, error.code, error.reason) from None
