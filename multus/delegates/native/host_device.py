"""The plugin `host-device`, done over netlink: an interface of the node moves into the pod, and back at DEL.

Source of what it does: containernetworking/plugins 1.1. The name that it had on the node is kept as its alias, as the
program keeps it: either can bring back what the other took. What it does otherwise: after a failed ADD the interface is
back, and DEL does not fail for a pod or an interface that is gone, and gives its addresses back then too. Devices that
user space drives (DPDK), those of other buses, and CHECK are the program's.
"""

import errno
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Final

import anyio
import msgspec

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux import link_changes, netdevs, netns, rtnetlink
from multus.cni.request import Command
from multus.cni.result import DNS, Interface, Result
from multus.delegates.chain import Delegate
from multus.delegates.native import reading
from multus.delegates.native.pod_side import addresses, configure, do
from multus.delegates.native.printing import printed
from multus.delegates.native.reading import Unsupported
from multus.delegates.plugin import Call
from multus.errors import MultusError

logger = logging.getLogger(__name__)

_CLEANUP: Final = 60.0  # seconds that undoing may take when the caller has given up
_PCI = re.compile(r"[0-9a-fA-F]{4,8}:[0-9a-fA-F]{2}:[0-9a-fA-F]{2}\.[0-7]")
_USER_SPACE: Final = ("vfio-pci", "uio_pci_generic", "igb_uio")  # drivers under which there is no interface
_KNOWN: Final = (
    *("cniVersion", "name", "type", "device", "hwaddr", "kernelpath", "pciBusID", "deviceID", "ipam", "dns"),
    *("args", "runtimeConfig", "capabilities", "prevResult"),
)


class HostDeviceConf(msgspec.Struct, frozen=True, kw_only=True):
    """A configuration: the first of these that is not "" tells which interface; `ipam` "" is for no addresses.

    `folder` is the directory in sysfs that is named after it.
    """

    version: str
    device: str
    hwaddr: str
    folder: str
    ipam: str
    dns: DNS


class HostDevice:
    """A delegate (see `multus.delegates.chain`). `runner` runs the program, `ipam` the address plugin.

    `root` is the root directory below which sysfs is, "" ours.
    """

    def __init__(self, runner: Delegate, *, ipam: Delegate, root: str = "") -> None:
        self._runner = runner
        self._ipam = ipam
        self._root = root

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: as the program.
        """
        if call.command not in (Command.ADD, Command.DEL):
            return await self._runner(plugin, call)
        try:
            conf = read_host_device(call, self._root)
        except Unsupported as reason:
            logger.debug("plugin %s: %s is not done here: %s", plugin, call.command, reason)
            return await self._runner(plugin, call)
        if call.command is Command.DEL:
            if call.netns and not await do(plugin, call, _bring_back, call):
                return await self._runner(plugin, call)
            if conf.ipam:
                await self._ipam(conf.ipam, call)
            return b""
        if not await do(plugin, call, _take, conf, call):
            return await self._runner(plugin, call)
        return printed(await self._add(plugin, conf, call), conf.version)

    async def _add(self, plugin: str, conf: HostDeviceConf, call: Call) -> Result:
        """All after the interface is in the pod; it is back on the node after a failure."""
        answered = False
        given = Result()
        try:
            if conf.ipam:
                answer = await self._ipam(conf.ipam, call)
                answered = True  # before, it refused: what the container had is not this call's to give back
                given = addresses(plugin, conf.ipam, answer, call, version=conf.version, interface=0)
            found = await configure(plugin, call, given, sysctls=(), root=self._root)
        except BaseException:
            await self._undo(plugin, conf.ipam if answered else "", call)
            raise
        interface = Interface(name=call.ifname, mac=found.mac, sandbox=call.netns)
        dns = conf.dns if conf.ipam else DNS()
        return Result(interfaces=(interface,), ips=given.ips, routes=given.routes, dns=dns)

    async def _undo(self, plugin: str, kind: str, call: Call) -> None:
        """After a failed ADD, whether or not we are cancelled; the ADD's own failure is what counts."""
        gone = msgspec.structs.replace(call, command=Command.DEL)
        with anyio.move_on_after(_CLEANUP, shield=True):
            if kind:
                try:
                    await self._ipam(kind, gone)
                except MultusError as error:
                    logger.warning("plugin %s: addresses may be left over: %s", plugin, error)
            try:
                await do(plugin, gone, _bring_back, gone)
            except MultusError as error:
                logger.warning("plugin %s: interface %s may still be in the pod: %s", plugin, call.ifname, error)


def read_host_device(call: Call, root: str = "") -> HostDeviceConf:
    """The configuration of a call.

    :raises Unsupported: one for the program.
    """
    found = reading.members(call.conf, _KNOWN, only=True)
    runtime = reading.members(found["runtimeConfig"], ("deviceID",)) if "runtimeConfig" in found else {}
    device, hwaddr, path, pci = (
        reading.optional(found, key, str, "") for key in ("device", "hwaddr", "kernelpath", "pciBusID")
    )
    pci = reading.optional(runtime, "deviceID", str, "") or pci
    if pci:
        _check_pci(f"{root}/sys/bus/pci/devices", pci)
    folder = ""
    if path:
        if not path.startswith("/sys/devices/") or ".." in path.split("/"):
            raise Unsupported("kernelpath")
        folder = f"{root}{path}/net"
    elif pci:
        folder = f"{root}/sys/bus/pci/devices/{pci}/net"
    conf = HostDeviceConf(
        version=reading.optional(found, "cniVersion", str, ""),
        device=device,
        hwaddr=hwaddr.lower(),
        folder=folder,
        ipam=reading.ipam_type(found),
        dns=reading.dns(found),
    )
    if conf.version not in reading.VERSIONS or not reading.is_mac(hwaddr) or not (device or hwaddr or folder):
        raise Unsupported("version, hwaddr, or no device")
    return conf


def _check_pci(devices: str, address: str) -> None:
    """A device of that address has an interface: its driver is none of user space's."""
    if not _PCI.fullmatch(address):
        raise Unsupported("pciBusID")
    try:
        driver = os.readlink(f"{devices}/{address}/driver")  # noqa: PTH115 (a Path costs more than the call)
    except OSError:
        raise Unsupported("a device without a driver") from None
    if os.path.basename(driver) in _USER_SPACE:  # noqa: PTH119
        raise Unsupported("a device of user space")


def _take(conf: HostDeviceConf, call: Call) -> bool:
    """Move the interface into the pod; False when it cannot be begun: the program then says what is wrong.

    :raises KernelError: the kernel refused; the interface is where it was.
    """
    if netns.identity(call.netns) is None:
        return False
    with rtnetlink.connect() as node:
        found = _look_for(node, conf)
        if found is None:
            return False
        with _opened(call.netns) as pod, _opened(netns.HERE) as here:
            link_changes.set_alias(node, found.index, found.name)
            try:
                netdevs.move(node, found.index, pod, call.ifname)
            except KernelError as error:
                _put_back(node, call, found, here)
                raise KernelError("failed to move link", error.code, error.reason) from None
    return True


def _look_for(node: socket.socket, conf: HostDeviceConf) -> netdevs.Netdev | None:
    """The interface, as the program finds it."""
    links = netdevs.read(node)
    if conf.device:
        return next((link for link in links if link.name == conf.device), None)
    if conf.hwaddr:
        return next((link for link in links if link.mac == conf.hwaddr), None)
    try:
        names = sorted(os.listdir(conf.folder))  # noqa: PTH208 (its order, and no Path for each)
    except OSError:
        return None
    return next((link for link in links if link.name == names[0]), None) if names else None


def _put_back(node: socket.socket, call: Call, was: netdevs.Netdev, here: int) -> None:
    """After a move that failed, perhaps half way: the interface is on the node, under its name, up if it was."""
    with suppress(DeviceError), netns.open_socket(call.netns) as inside:
        for link in netdevs.read(inside):
            if link.name == was.name and link.mac == was.mac:
                netdevs.move(inside, link.index, here, was.name)
    with suppress(KernelError):
        back = link_changes.find(node, was.name)
        if back is not None:
            link_changes.set_alias(node, back.index, "")
            if was.up and not back.up:
                netdevs.change(node, back.index, netdevs.Change(up=True))


def _bring_back(call: Call) -> bool:
    """Move the pod's interface to the node; False for one that nobody moved here: the program then judges it.

    A pod or an interface that is gone is no failure.

    :raises KernelError: the kernel refused; the interface stays in the pod, under its name there.
    """
    try:
        inside = netns.open_socket(call.netns)
    except NamespaceError as error:
        if error.gone:
            return True
        raise
    with inside, rtnetlink.connect() as node, _opened(netns.HERE) as here, _opened(call.netns) as pod:
        found = link_changes.find(inside, call.ifname)
        if found is None:
            return True
        if not found.alias:
            return False
        if link_changes.find(node, found.alias) is not None:
            what = f'failed to move "{call.ifname}" back'
            raise KernelError(what, errno.EEXIST, f"the node has another interface {found.alias}")
        try:
            netdevs.move(inside, found.index, here, found.alias)
        except KernelError as error:
            with suppress(KernelError):
                link = link_changes.find(node, call.ifname)
                if link is not None and link.alias == found.alias:
                    netdevs.move(node, link.index, pod, call.ifname)
            raise KernelError(f'failed to move "{call.ifname}" to the node', error.code, error.reason) from None
    return True


@contextmanager
def _opened(path: str) -> Iterator[int]:
    """A namespace's file.

    :raises NamespaceError: there is none.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise NamespaceError(f"{path}: {error.strerror}", code=error.errno or 0) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)
