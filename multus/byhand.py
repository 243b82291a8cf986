"""Devices of pools for people and programs: taken and given back with `multusctl vf`, beside what pods get.

The daemon does it for its own pools while it runs; without one, the tool does the same on the journal.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

import anyio
import anyio.to_thread
import msgspec

from devices.errors import DeviceError
from multus.byhand_asks import BY_HAND, Ask, ByHandError, Given, Made, Operation, Placed
from multus.device_ids import device_ids
from multus.errors import from_devices
from multus.sandbox import Sandbox

if TYPE_CHECKING:
    from devices.inventory import Inventory
    from devices.ledger import Allocation
    from devices.pool_config import PoolConfig
    from devices.pools import Pools

_PATIENCE: Final = 5.0  # seconds for the kubelet
_SYSFS: Final = Path("/sys")


class Source(Protocol):
    """Has pools and gives out of them: a device manager."""

    @property
    def config(self) -> "PoolConfig": ...
    @property
    def inventory(self) -> "Inventory": ...
    @property
    def pools(self) -> "Pools": ...
    @property
    def allocations(self) -> "Sequence[Allocation]": ...
    async def allocate(
        self, resource: str, count: int, *, owner: str, more: bool, avoid: Mapping[str, str]
    ) -> tuple[str, ...]: ...
    async def choose(self, resource: str, count: int, *, owner: str, avoid: Mapping[str, str]) -> tuple[str, ...]: ...
    async def drop(self, device: str) -> str: ...
    def withholding(self, parents: Sequence[str], reason: str) -> AbstractAsyncContextManager[None]: ...


class ByHand:
    """Serves what `multusctl vf` asks. `source` is None on a node without pools, `kubelet_dir` where none is served.

    `sandboxes` lists what is attached.
    """

    def __init__(
        self,
        source: Source | None,
        sandboxes: Callable[[], Awaitable[Sequence[Sandbox]]],
        *,
        kubelet_dir: Path | None = None,
        sysfs: Path = _SYSFS,
    ) -> None:
        self._source = source
        self._sandboxes = sandboxes
        self._kubelet_dir = kubelet_dir
        self._sysfs = sysfs
        self._lock = anyio.Lock()

    async def answer(self, operation: Operation, body: bytes) -> bytes:
        """Do what a JSON document asks; the answer's.

        :raises MultusError: it is refused, or cannot be done.
        """
        if operation == "show":
            return msgspec.json.encode(self.show())
        try:
            ask = msgspec.json.decode(body, type=Ask)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ByHandError(f"the request cannot be understood: {error}") from None
        done = {"allocate": self.allocate, "release": self.release, "create": self.create}[operation]
        return msgspec.json.encode(await done(ask))

    def show(self) -> dict[str, Placed]:
        """Every device of a pool, by address. Nothing on a node without pools."""
        if self._source is None:
            return {}
        owners = {device: each.owner for each in self._source.allocations for device in each.devices}
        return {
            bdf: Placed(resource=member.resource, reason=member.reason, owner=owners.get(bdf, ""))
            for bdf, member in self._source.pools.by_bdf.items()
        }

    async def allocate(self, ask: Ask) -> Given:
        """Take devices out of a pool, durably, beside those that the owner has already.

        :raises MultusError: there are not as many that nobody uses, or it cannot be told.
        """
        source = self._pools()
        if ask.count < 1:
            raise ByHandError(f"{ask.count} devices cannot be allocated", hint="--count is at least 1")
        owner = f"{BY_HAND}{ask.owner}"
        async with self._lock:
            with from_devices():
                resource = source.config.pool(full_name(source.config, ask.pool)).resource
                had = {
                    device
                    for each in source.allocations
                    if (each.owner, each.resource) == (owner, resource)
                    for device in each.devices
                }
                avoid = await self._in_use(resource)
                if ask.dry:
                    now = await source.choose(resource, len(had) + ask.count, owner=owner, avoid=avoid)
                else:
                    now = await source.allocate(resource, ask.count, owner=owner, more=True, avoid=avoid)
        return Given(devices=tuple(each for each in now if each not in had), owner=owner, resource=resource)

    async def release(self, ask: Ask) -> Given:
        """Give back one device that was allocated by hand.

        :raises MultusError: it was not, or somebody uses it.
        """
        source = self._pools()
        async with self._lock:
            bdf = self._address(ask.device)
            if pod := attached(await self._sandboxes()).get(bdf):
                raise ByHandError(f"{bdf} is in use by {pod}", hint="it is given back when the pod ends")
            owner = next((each.owner for each in source.allocations if bdf in each.devices), "")
            if not owner:
                raise ByHandError(f"{bdf} is not allocated", hint="`multusctl vf show` says what is")
            if not owner.startswith(BY_HAND):
                raise ByHandError(f"{bdf} was given by the daemon: {owner}", hint="it is given back when the pod ends")
            from multus import uses

            with from_devices():
                if holders := await anyio.to_thread.run_sync(uses.programs, bdf, self._sysfs):
                    raise ByHandError(f"{bdf} is in use by {holders[0]}", hint="end it first")
                if not ask.dry:
                    await source.drop(bdf)
        return Given(devices=(bdf,), owner=owner)

    async def create(self, ask: Ask) -> Made:
        """Have a PF make another number of VFs; meanwhile none of them is given out.

        :raises MultusError: it is refused, or the kernel refuses.
        """
        from multus.numvfs import has_vfs, set_count

        source = self._source
        async with self._lock:
            with from_devices():
                bdf = self._address(ask.device)
                free = source is None or ask.dry
                async with nullcontext() if free else self._pools().withholding([bdf], "its PF is changed by hand"):
                    given = source.allocations if source else ()
                    recorded = {device: each.owner for each in given for device in each.devices}
                    recorded |= attached(await self._sandboxes())
                    if await anyio.to_thread.run_sync(has_vfs, self._sysfs, bdf):
                        recorded |= await self._of_containers()
                    make = partial(set_count, self._sysfs, bdf, ask.count, recorded, dry=ask.dry)
                    with anyio.CancelScope(shield=True):
                        made = await anyio.to_thread.run_sync(make)
        return made

    def _pools(self) -> Source:
        if self._source is None:
            raise ByHandError(
                "this multusd has no pools to give out of", hint='set "deviceConfig", or policies, in its configuration'
            )
        return self._source

    def _address(self, text: str) -> str:
        """What to release may be gone from the hardware: its address is enough then."""
        from devices.linux.pci_address import AddressError, parse_address

        try:
            return parse_address(text)
        except AddressError:
            device = self._pools().inventory.by_netdev(text)
            if device is None:
                raise ByHandError(
                    f"no NIC or VF {text[:60]!r} here", hint="`multusctl devices` shows all; an address always does"
                ) from None
            return device.bdf

    async def _in_use(self, resource: str) -> dict[str, str]:
        """Devices of the pool that are not to be given, and why: what is recorded is not all that there is.

        :raises DeviceError: it cannot be told. :raises MultusError: likewise.
        """
        from devices.inventory import VF
        from multus import uses

        found = self._pools().inventory
        members = [member.device for member in self._pools().pools.members.get(resource, ())]
        vfs = [device for device in members if isinstance(device, VF)]

        def look() -> dict[str, str]:
            used = uses.of_hardware(vfs, sysfs=self._sysfs)
            if self._sysfs == _SYSFS:  # of another, interfaces by these numbers are not ours
                from dpdk.kernel import Kernel

                used |= uses.of_node(vfs, found.records, Kernel().survey())
            return used

        used = await anyio.to_thread.run_sync(look)
        return used | attached(await self._sandboxes()) | await self._of_containers()

    async def _of_containers(self) -> dict[str, str]:
        if self._kubelet_dir is None:
            return {}
        from devices.kubelet.podresources import SOCKET, PodResources

        socket = self._kubelet_dir / SOCKET
        if not await anyio.Path(socket.parent).is_dir():  # there never was one
            return {}
        try:
            pods = await PodResources(socket, timeout=_PATIENCE).pods()
        except DeviceError as error:
            raise ByHandError(
                f"it cannot be told what the kubelet's containers have: {error.message}",
                hint=error.hint or "nothing is given out or changed before it answers",
            ) from None
        return {
            device: f"container {container.container} of pod {pod.namespace}/{pod.name} has it"
            for pod in pods
            for container in pod.containers
            for each in container.devices
            for device in each.ids
        }


def attached(sandboxes: Sequence[Sandbox]) -> dict[str, str]:
    """Devices of pods, by address."""
    return {
        bdf: f"pod {sandbox.pod_namespace}/{sandbox.pod_name} ({item.ifname})"
        for sandbox in sandboxes
        for item in sandbox.attachments
        for bdf in device_ids(item)
    }


def full_name(config: "PoolConfig", name: str) -> str:
    """A pool's resource, of which the last part is enough where it is the only one.

    :raises ByHandError: it is not.
    """
    found = [pool.resource for pool in config.pools if name in (pool.resource, pool.name)]
    if len(found) > 1 and name not in found:
        raise ByHandError(f"several pools are called {name}", hint=f"one of {', '.join(found)}")
    return found[0] if len(found) == 1 else name
