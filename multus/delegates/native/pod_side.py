"""What every plugin does in the pod, once its interface is there: addresses, up, routes; and the interface's removal.

Source of the rules: containernetworking/plugins 1.1, pkg/ipam ConfigureIface.
"""

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, ParamSpec, TypeVar

import anyio
import anyio.to_thread
import msgspec

from devices.errors import DeviceError, KernelError, NamespaceError
from devices.linux import addressing, link_changes, netdevs, netns, rtnetlink
from multus.cni.errors import Code
from multus.cni.request import Command
from multus.cni.result import IP, Result, parse_result
from multus.delegates.chain import Delegate
from multus.delegates.plugin import Call, PluginError
from multus.delegates.visit import Visit
from multus.errors import MultusError

P = ParamSpec("P")
T = TypeVar("T")

Sysctls = Sequence[tuple[str, str]]
"""Values below /proc/sys/net, by name; "{}" stands for the interface."""

logger = logging.getLogger(__name__)

_CLEANUP: Final = 60.0  # seconds that undoing may take when the caller has given up
_SETTLE: Final = 10.0  # seconds for IPv6 addresses to prove that they are nobody else's
_SETTLE_PAUSE: Final = 0.05


async def configure(plugin: str, call: Call, given: Result, *, sysctls: Sysctls, root: str = "") -> link_changes.Found:
    """Give the pod's interface what the address plugin chose, and set it up; the interface.

    :raises PluginError: the kernel refused.
    """
    found = await visit(plugin, call, lambda there: bring_up(there, call.ifname, given, sysctls, root))
    await settle(plugin, call, found.index, given)
    return found


def addresses(plugin: str, kind: str, answer: bytes, call: Call, *, version: str, interface: int) -> Result:
    """What the address plugin answered, on that interface of the result.

    :raises CNIError: it is no result, or has no addresses.
    """
    given = parse_result(answer, where=f'plugin type="{kind}"', version=version)
    return placed(plugin, given, call, interface=interface)


def placed(plugin: str, given: Result, call: Call, *, interface: int) -> Result:
    """What the address plugin gave, on that interface of the result.

    :raises PluginError: it has no addresses.
    """
    if not given.ips:
        raise PluginError(plugin, call.command, Code.INTERNAL, "IPAM plugin returned missing IP config")
    ips = tuple(msgspec.structs.replace(ip, interface=interface) for ip in given.ips)
    return msgspec.structs.replace(given, ips=ips)


async def undo(plugin: str, ipam: Delegate, kind: str, call: Call) -> None:
    """After a failed ADD: addresses (when `kind` gave some) and interface go, whether or not we are cancelled.

    Raises nothing: the ADD's own failure is what counts, and a DEL follows it.
    """
    gone = msgspec.structs.replace(call, command=Command.DEL)
    with anyio.move_on_after(_CLEANUP, shield=True):
        if kind:
            try:
                await ipam(kind, gone)
            except MultusError as error:
                logger.warning("plugin %s: addresses may be left over: %s", plugin, error)
        try:
            await do(plugin, gone, remove, gone)
        except MultusError as error:
            logger.warning("plugin %s: interface %s may be left over: %s", plugin, call.ifname, error)


def bring_up(there: Visit, ifname: str, given: Result, sysctls: Sysctls, root: str) -> link_changes.Found:
    """Give the pod's interface its addresses, set it up, and add routes unless they have to wait (see `waits`).

    The interface. `root` is where /proc is.

    :raises DeviceError: the kernel refused.
    """
    found = link_changes.find(there.pod, ifname)
    if found is None:
        raise KernelError(f'failed to lookup "{ifname}"', errno.ENODEV, "Link not found")
    wanted = [(name.format(ifname), value) for name, value in sysctls]
    if any(":" in ip.address for ip in given.ips):
        wanted += [(f"ipv6/conf/{name}/disable_ipv6", "0") for name in ("lo", ifname)]
    if wanted:
        with there.inside():
            for name, value in wanted:  # as well as it can be had
                with suppress(KernelError):
                    link_changes.set_sysctl(name, value, root, new=True)
    requests = [addressing.adding_address(found.index, ip.address) for ip in given.ips]
    requests.append(netdevs.changing(found.index, netdevs.Change(up=True)))
    if not waits(given):
        requests += _routes(found.index, given)
    rtnetlink.change_all(there.pod, requests)
    return found


def _routes(index: int, given: Result) -> list[rtnetlink.Request]:
    """Each through its own gateway, else through that of the first address of its family."""
    return [
        link_changes.adding_route(index, route.dst, route.gw or _gateway(given.ips, ":" in route.dst))
        for route in given.routes
    ]


def _gateway(ips: Sequence[IP], six: bool) -> str:
    return next((ip.gateway for ip in ips if ip.gateway and (":" in ip.gateway) is six), "")


def waits(given: Result) -> bool:
    """Whether the pod is told of its addresses only when they are usable: those of IPv6 with a gateway."""
    return bool(_gateway(given.ips, True))


async def settle(plugin: str, call: Call, index: int, given: Result) -> None:
    """Wait until the addresses are usable, where that takes time (see `waits`), then add the routes.

    :raises PluginError: they do not become usable, or the kernel refused.
    """
    if not waits(given):
        return
    with await do(plugin, call, netns.open_socket, call.netns) as connection:
        deadline = anyio.current_time() + _SETTLE
        while await do(plugin, call, link_changes.is_settling, connection, index):
            if anyio.current_time() > deadline:
                message = f"link {call.ifname} still has tentative addresses after {_SETTLE:g} seconds"
                raise PluginError(plugin, call.command, Code.INTERNAL, message)
            await anyio.sleep(_SETTLE_PAUSE)
        if given.routes:
            await do(plugin, call, rtnetlink.change_all, connection, _routes(index, given))


def remove(call: Call) -> None:
    """Remove the pod's interface, if it and the pod are there.

    :raises DeviceError: the kernel refused.
    """
    try:
        with netns.open_socket(call.netns) as connection:
            link_changes.delete(connection, call.ifname)
    except NamespaceError as error:
        if not error.gone:
            raise


async def visit(plugin: str, call: Call, work: Callable[[Visit], T]) -> T:
    """As `do`, on a visit to the pod."""

    def there() -> T:
        with Visit(call.netns) as made:
            return work(made)

    return await do(plugin, call, there)


async def do(plugin: str, call: Call, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """In a thread, to its end, so that nothing is done unseen after the caller was told; failures as the plugin's."""
    with told(plugin, call):
        return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))


@contextmanager
def told(plugin: str, call: Call) -> Iterator[None]:
    """The kernel's refusals as the plugin's failures."""
    try:
        yield
    except DeviceError as error:
        raise PluginError(plugin, call.command, Code.INTERNAL, error.message, hint=error.hint) from None
