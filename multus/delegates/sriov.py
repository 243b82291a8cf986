"""The `sriov` plugin, done in process: a VF is configured through its PF, given to the pod, and put back as it was.

Source of what it does, and in which order: sriov-cni v2.10.0. What it does otherwise: the VF's state is on disk before
the first change, every failure puts it back, DEL can be repeated until it succeeds, and CHECK looks.
"""

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Final, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import anyio
import anyio.to_thread
import msgspec

from devices.linux.netdevs import Netdev
from dpdk.drivers import Binder
from dpdk.kernel import Kernel
from multus.cni.errors import CNIError, Code
from multus.cni.network import TUNING
from multus.cni.request import Command
from multus.cni.result import Result, encode_result, parse_result
from multus.delegates.plugin import Call
from multus.delegates.sriov_bind import give_back, plan_driver, rebased
from multus.delegates.sriov_check import drift, told
from multus.delegates.sriov_conf import SriovConf, outline, parse_sriov
from multus.delegates.sriov_errors import AllocatedError, DriftError, allocated, not_back
from multus.delegates.sriov_record import KIND, Record, Store, UpstreamFiles, decode_record, encode_record, stale
from multus.delegates.sriov_vf import PodKernel, attach, give_addresses, is_held, is_there, prepare, put_back, reported
from multus.errors import MultusError, from_devices

__all__ = ["AllocatedError", "DriftError", "Sriov"]

logger = logging.getLogger(__name__)

_CLEANUP: Final = 60.0  # seconds that undoing may take when the caller has given up; upstream's lock waits as long
P = ParamSpec("P")
T = TypeVar("T")


class Sriov:
    """A delegate (see `multus.delegates.chain`). `runner` runs the address plugin; `boot_id` is this boot's.

    `binder` is the node's one, when others bind VFs, too.
    """

    def __init__(
        self,
        runner: Callable[[str, Call], Awaitable[bytes]],
        records: Store,
        kernel: PodKernel,
        *,
        boot_id: str,
        upstream: UpstreamFiles | None = None,
        binder: Binder | None = None,
    ) -> None:
        self._runner = runner
        self._records = records
        self._kernel = kernel
        self._boot_id = boot_id
        self._upstream = upstream or UpstreamFiles()
        self._binder = binder or Binder(Kernel(), records)
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()
        self._adding: set[tuple[str, str]] = set()  # attachments, by container and interface

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Carry out a call; what the plugin would print.

        :raises MultusError: it was not done; after a failed ADD the VF is as it was.
        """
        match call.command:
            case Command.ADD:
                attachment = (call.container_id, call.ifname)
                self._adding.add(attachment)
                try:
                    return await self._add(call)
                finally:
                    self._adding.discard(attachment)
            case Command.DEL:
                await self._delete(call)
            case Command.CHECK:
                await self._check(call)
            case Command.STATUS:
                await self._addresses_only(call)
            case Command.GC:
                await self._collect(call)
        return b""

    async def _add(self, call: Call) -> bytes:
        conf = parse_sriov(call.conf, call.args)
        for sentence in conf.unknown:
            logger.warning("network %s: %s", conf.name, sentence)
        async with self._lock(conf.device):
            await self._claim(conf.device)
            with from_devices():
                plan = await plan_driver(self._binder, conf, call)
            prepared = await self._do(prepare, self._kernel, conf, call, self._boot_id, plan)
            await self._records.save(conf.device, KIND, encode_record(prepared.record))
            ipam = ""
            try:
                if plan is not None:
                    with from_devices():
                        await self._binder.apply_bind(plan)
                    prepared = await self._do(rebased, self._kernel, prepared)
                record, netdev = await self._do(attach, self._kernel, prepared)
                if record != prepared.record:
                    await self._records.save(conf.device, KIND, encode_record(record))
                result = Result(interfaces=(reported(call, prepared, netdev),))
                ipam = conf.ipam
                if ipam:
                    result = await self._address(conf, call, netdev, result)
                return encode_result(result, conf.cni_version)
            except BaseException:
                with anyio.move_on_after(_CLEANUP, shield=True):
                    await self._undo(ipam, call, prepared.record)
                raise

    async def _address(self, conf: SriovConf, call: Call, netdev: Netdev | None, result: Result) -> Result:
        """The result with what the address plugin gives; a program's VF has it in there only."""
        printed = await self._runner(conf.ipam, call)
        given = parse_result(printed, where=f'plugin type="{conf.ipam}"', version=conf.cni_version)
        if not given.ips:
            raise CNIError(Code.INTERNAL, f'sriov: IPAM plugin "{conf.ipam}" returned missing IP config')
        ips = tuple(msgspec.structs.replace(ip, interface=0) for ip in given.ips)
        result = msgspec.structs.replace(result, ips=ips, routes=given.routes, dns=given.dns)
        if netdev is not None:
            await self._do(give_addresses, self._kernel, call.netns, netdev, result)
        return result

    async def _undo(self, ipam: str, call: Call, record: Record) -> None:
        """After a failed ADD. What cannot be put back stays on record, for the DEL that follows or the next ADD."""
        if ipam:
            try:
                await self._runner(ipam, msgspec.structs.replace(call, command=Command.DEL))
            except MultusError as error:
                logger.warning("network %s: addresses may be left over: %s", record.network, error)
        try:
            await self._release(record)
        except MultusError as error:
            logger.error("VF %s could not be put back, which is tried again: %s", record.bdf, error)

    async def _claim(self, bdf: str) -> None:
        """See that nobody has the VF; one whose namespace is gone gives it up, and it is put back first.

        :raises AllocatedError: somebody has it.
        """
        record = await self._load(bdf)
        if record is not None:
            if await self._do(is_held, self._kernel, record, self._boot_id):
                raise allocated(bdf, f"container {record.container_id}, {record.ifname}")
            logger.warning("VF %s is taken over from container %s, which is gone", bdf, record.container_id)
            if not await self._release(record):
                raise not_back(bdf)
        await self._claim_from_upstream(bdf)

    async def _claim_from_upstream(self, bdf: str) -> None:
        holder = await self._do(self._upstream.holder, bdf)
        if holder and await self._do(self._kernel.identity, holder) is not None:
            raise allocated(bdf, f"{holder}, by sriov-cni")
        left = await self._do(self._upstream.find, bdf) if holder else None
        if left is not None and not await self._do(put_back, self._kernel, left):
            raise not_back(bdf)
        if holder:
            gone = left or Record(bdf=bdf, container_id="", ifname="", netns=holder)
            await self._do(self._upstream.forget, gone, claim=True)

    async def _delete(self, call: Call) -> None:
        about = outline(call.conf)
        failures: list[MultusError] = []
        if about.ipam:  # first, for a DHCP lease is given back over the interface; and nobody waits for this
            try:
                await self._runner(about.ipam, call)
            except MultusError as error:
                failures.append(error)
        try:
            await self._give_up(call, about.device)
        except MultusError as error:
            failures.append(error)
        _raise_first(about.name, failures)

    async def _give_up(self, call: Call, device: str) -> None:
        """Put back the VF of this attachment, if it has one: a late DEL finds another's, or none."""
        bdf = await self._bdf_of(call, device)
        if not bdf:
            return
        async with self._lock(bdf):
            record = await self._load(bdf)
            own = record if record is not None and record.is_of(call.container_id, call.ifname) else None
            if own is not None and not await self._release(own):
                logger.warning("VF %s: its interface is nowhere to be found; it is put back when next used", bdf)
                released = encode_record(msgspec.structs.replace(own, released=True))
                await self._records.save(bdf, KIND, released)
            left_by_upstream = await self._do(self._upstream.load, call.container_id, call.ifname)
            if left_by_upstream is not None:
                await self._release_upstream(left_by_upstream, call, held=record is not None)

    async def _release_upstream(self, left: Record, call: Call, *, held: bool) -> None:
        holder = left.netns
        gone = not call.netns and await self._do(self._kernel.identity, holder) is None
        own = not held and (holder in ("", call.netns) or gone)
        if own:  # else it is another pod's by now
            usable = msgspec.structs.replace(left, netns=call.netns or holder)
            if not await self._do(put_back, self._kernel, usable):
                logger.warning("VF %s: its interface is nowhere to be found", left.bdf)
        await self._do(self._upstream.forget, left, claim=own)

    async def _bdf_of(self, call: Call, device: str) -> str:
        """The VF of this attachment by our records, by upstream's, then by its configuration."""
        likely = await self._load(device) if device else None
        if likely is not None and likely.is_of(call.container_id, call.ifname):
            return device
        for key, data in await self._records.all(KIND):
            record = decode_record(key, data)
            if record is not None and record.is_of(call.container_id, call.ifname):
                return key
        left = await self._do(self._upstream.load, call.container_id, call.ifname)
        return left.bdf if left is not None else device

    async def _release(self, record: Record) -> bool:
        """Put the VF back and forget it; False when its interface cannot be found. After a reboot all is as it was.

        :raises MultusError: not all could be put back; it stays on record.
        """
        with from_devices():  # first: whoever still has it must not be in another VLAN than the pod was
            await give_back(self._binder, record)
        this_boot = record.boot_id == self._boot_id
        if this_boot and not await self._do(put_back, self._kernel, record):
            return False
        await self._records.forget(record.bdf, KIND)
        return True

    async def _check(self, call: Call) -> None:
        conf = parse_sriov(call.conf, call.args)
        record = await self._load(conf.device)
        if record is None or not record.is_of(call.container_id, call.ifname):
            raise DriftError(f"VF {conf.device} is not on record for {call.ifname} of container {call.container_id}")
        interface = told(call.conf, call.ifname, conf.cni_version)
        problems = await self._do(drift, self._kernel, record, call.netns, interface, tuned=TUNING in call.followed_by)
        if problems:
            raise DriftError(f"VF {conf.device}: {'; '.join(problems)}")
        if conf.ipam:
            await self._runner(conf.ipam, call)

    async def _collect(self, call: Call) -> None:
        """GC: a DEL for each attachment on record that is not valid any more; then the address plugin's own.

        One that is being made is newer than the list of the valid ones.

        :raises MultusError: the first failure, after all were tried.
        """
        failures: list[MultusError] = []
        for record in await stale(self._records, call.conf):
            if (record.container_id, record.ifname) in self._adding:
                continue
            logger.warning(
                "network %s: VF %s is taken back from %s of container %s, which is gone",
                *(record.network, record.bdf, record.ifname, record.container_id),
            )
            try:
                netns = record.netns if await self._do(is_there, self._kernel, record) else ""
                whose = {"container_id": record.container_id, "netns": netns, "ifname": record.ifname}
                await self._delete(msgspec.structs.replace(call, command=Command.DEL, **whose))
            except MultusError as error:
                failures.append(error)
        try:
            await self._addresses_only(call)
        except MultusError as error:
            failures.append(error)
        _raise_first(outline(call.conf).name, failures)

    async def _addresses_only(self, call: Call) -> None:
        """STATUS, as this plugin is always able, and the address plugin's part of GC.

        One older than the command says that it does not know it (4), which is no trouble of its own.
        """
        ipam = outline(call.conf).ipam
        if ipam:
            try:
                await self._runner(ipam, call)
            except CNIError as error:
                if error.code != Code.INVALID_ENVIRONMENT:
                    raise

    async def _load(self, bdf: str) -> Record | None:
        data = await self._records.load(bdf, KIND)
        return decode_record(bdf, data) if data is not None else None

    def _lock(self, bdf: str) -> anyio.Lock:
        """Of this VF; it exists as long as somebody uses it."""
        lock = self._locks.get(bdf)
        if lock is None:
            lock = self._locks[bdf] = anyio.Lock()
        return lock

    async def _do(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """In a thread, to its end: what was begun of a VF is not left half done when the caller is cancelled."""
        with from_devices():
            return await anyio.to_thread.run_sync(partial(function, *args, **kwargs))


def _raise_first(network: str, failures: Sequence[MultusError]) -> None:
    for other in failures[1:]:
        logger.warning("network %s: %s", network, other)
    if failures:
        raise failures[0]
