"""The address plugin `host-local`: an address of each set of ranges, kept in files that its program reads as well.

Source of what it does: containernetworking/plugins 1.1.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Final, TypeVar

from multus.cni.errors import CNIError, Code
from multus.cni.result import DNS, IP, Result
from multus.delegates.exec import StartError
from multus.delegates.native import reading
from multus.delegates.native.pool import Pool, RangeSet, candidates, range_of, read_pool, spell
from multus.delegates.native.reading import Address, Unsupported
from multus.delegates.native.store import Store, locked
from multus.delegates.plugin import Call, PluginError
from multus.delegates.process import in_root

T = TypeVar("T")

_LONGEST_LINE: Final = 64 * 1024


class _RefusalError(Exception):
    """Why there is no address."""


class HostLocal:
    """An address plugin (see `multus.delegates.native.ipam`); `root` is the root directory of its paths, "" ours."""

    def __init__(self, *, root: str = "") -> None:
        self._root = root

    def lease(self, plugin: str, call: Call) -> "_Lease":
        """As `AddressPlugin`; taking fails with TRY_AGAIN_LATER when the network's lock cannot be had."""
        return _Lease(plugin, call, read_pool(call), self._root)


class _Lease:
    def __init__(self, plugin: str, call: Call, pool: Pool, root: str) -> None:
        self.version = pool.version
        self.settles = any(each.network.version == 6 for ranges in pool.sets for each in ranges)
        self._plugin = plugin
        self._call = call
        self._pool = pool
        self._root = root

    def take(self) -> Result:
        return self._do(partial(_allocate, self._pool, self._call))

    def give_back(self) -> None:
        self._do(partial(_release, self._pool, self._call))

    def _do(self, task: Callable[[], T]) -> T:
        with _told(self._plugin, self._call):
            return in_root(self._root, task) if self._root else task()


def _allocate(pool: Pool, call: Call) -> Result:
    dns = _resolv_conf(pool.resolv_conf) if pool.resolv_conf else DNS()
    wanted = list(pool.requested)
    given: list[IP] = []
    with locked(pool.data_dir, pool.name) as store:
        taken: list[Address] = []
        try:
            for index, ranges in enumerate(pool.sets):
                address, ip = _take(store, ranges, index, call, wanted)
                taken.append(address)
                given.append(ip)
            if wanted:
                raise _RefusalError(f"failed to allocate all requested IPs: {' '.join(str(each) for each in wanted)}")
            for index, address in enumerate(taken):
                store.remember(index, str(address))
        except BaseException:
            for address in taken:
                store.give_back(str(address))
            raise
    return Result(ips=tuple(given), routes=pool.routes, dns=dns)


def _take(store: Store, ranges: RangeSet, index: int, call: Call, wanted: list[Address]) -> tuple[Address, IP]:
    """An address of the set: the one that is wanted of it, which is then taken out of `wanted`, or the next."""
    asked = next((each for each in wanted if range_of(ranges, each) is not None), None)
    try:
        if asked is not None:
            wanted.remove(asked)
            return asked, _take_this(store, ranges, call, asked)
        return _take_next(store, ranges, index, call)
    except _RefusalError as error:
        raise _RefusalError(f"failed to allocate for range {index}: {error}") from None


def _take_this(store: Store, ranges: RangeSet, call: Call, asked: Address) -> IP:
    within = range_of(ranges, asked)
    assert within is not None
    if asked == within.gateway:
        raise _RefusalError(f"requested ip {asked} is subnet's gateway")
    if not store.reserve(str(asked), call.container_id, call.ifname):
        raise _RefusalError(f"requested IP address {asked} is not available in range set {spell(ranges)}")
    return IP(address=f"{asked}/{within.network.prefixlen}", gateway=str(within.gateway))


def _take_next(store: Store, ranges: RangeSet, index: int, call: Call) -> tuple[Address, IP]:
    for name in store.held(call.container_id, call.ifname):
        held = _parsed(name)
        if held is not None and range_of(ranges, held) is not None:
            words = f"{held} has been allocated to {call.container_id}, duplicate allocation is not allowed"
            raise _RefusalError(words)
    for address, within in candidates(ranges, _parsed(store.last(index))):
        if store.reserve(str(address), call.container_id, call.ifname):
            return address, IP(address=f"{address}/{within.network.prefixlen}", gateway=str(within.gateway))
    raise _RefusalError(f"no IP addresses available in range set: {spell(ranges)}")


def _release(pool: Pool, call: Call) -> None:
    known = pool.given if len(pool.given) == len(pool.sets) else ()
    with locked(pool.data_dir, pool.name) as store:
        store.release(call.container_id, call.ifname, known=known)


def _parsed(text: str) -> Address | None:
    try:
        return reading.address(text)
    except Unsupported:
        return None


def _resolv_conf(path: str) -> DNS:
    """The resolver's file.

    :raises OSError: it cannot be read.
    """
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    domain = ""
    with open(path, encoding="utf-8", errors="replace") as lines:  # noqa: PTH123
        for line in lines:
            words = line[:_LONGEST_LINE].split()
            if len(words) < 2:
                continue
            match words[0]:
                case "nameserver":
                    nameservers.append(words[1])
                case "domain":
                    domain = words[1]
                case "search":
                    search += words[1:]
                case "options":
                    options += words[1:]
    return DNS(nameservers=tuple(nameservers), domain=domain, search=tuple(search), options=tuple(options))


@contextmanager
def _told(plugin: str, call: Call) -> Iterator[None]:
    """Failures as those of the plugin."""
    try:
        yield
    except _RefusalError as error:
        raise PluginError(plugin, call.command, Code.INTERNAL, str(error)) from None
    except OSError as error:
        message = f"{error.filename or 'host-local'}: {(error.strerror or str(error)).lower()}"
        raise PluginError(plugin, call.command, Code.INTERNAL, message) from None
    except StartError as error:
        message = f"cannot make {error.path} the root directory: {error.message}"
        raise PluginError(plugin, call.command, Code.INTERNAL, message) from None
    except PluginError:
        raise
    except CNIError as error:
        raise PluginError(plugin, call.command, error.code, error.message, hint=error.hint) from None
