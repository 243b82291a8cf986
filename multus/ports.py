"""DPDK ports of a pod: what it is told of them, where its containers find that, and what it lacks.

Its networks are known after the ADD and before its containers start. So files are written then, into folders that the
device plugin had mounted; the same is in the pod's network-status.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Protocol

import anyio.to_thread
import msgspec

from devices import portfiles
from devices.errors import DeviceError
from devices.kubelet.allocate import INFO_VERSION
from devices.linux.pci_address import AddressError, parse_address
from devices.linux.sysfs import Sysfs
from dpdk.eal import Port
from dpdk.hugepages import read_pages
from dpdk.iommu import read_group
from dpdk.portmap import MAP_LIMIT, PortMap, decode_map, encode_map, make_map, port_table, told
from multus.cni.result import Result
from multus.delegates.sriov_bind import for_programs
from multus.delegates.sriov_record import KIND, Record, decode_record
from multus.dpdk_pod import container_of, lacking, memory_mb
from multus.errors import MultusError
from multus.kube.objects import Pod
from multus.sandbox import Attachment, Sandbox

logger = logging.getLogger(__name__)

EVENT: Final = "DPDKNotReady"
"""The reason of the pod's events."""


class Records(Protocol):
    """Where the delegate keeps what it knows of a VF."""

    async def load(self, key: str, kind: str) -> bytes | None: ...


class Published(msgspec.Struct, frozen=True, kw_only=True):
    """What a pod was told. `lacks` are sentences: its DPDK program cannot work for these reasons."""

    ports: PortMap | None = None
    lacks: tuple[str, ...] = ()

    def device_info(self, ifname: str, info: dict[str, Any] | None) -> dict[str, Any] | None:
        """The device information of an interface, with what its DPDK program has to know."""
        found = self.ports
        port = next((each for each in found.ports if each.interface == ifname), None) if found is not None else None
        if found is None or port is None:
            return info
        known = info or {"type": "pci", "version": INFO_VERSION, "pci": {"pci-address": port.pci}}
        return {**known, "dpdk": told(port, found)}


NOTHING: Final = Published()


class Ports:
    """Tells pods. `directory` is the one of device information."""

    def __init__(self, records: Records, directory: Path, *, sysfs: Sysfs | None = None) -> None:
        self._records = records
        self._directory = directory
        self._sysfs = sysfs or Sysfs()

    async def publish(self, sandbox: Sandbox, pod: Pod, results: Mapping[str, Result]) -> Published:
        """Write the files of a pod whose networks stand, if it has VFs for DPDK; `results` are by interface.

        No pod fails for it: what could not be written is among what it lacks.
        """
        if not any(item.device_id for item in sandbox.attachments):
            return NOTHING
        try:
            owned = await self._owned(sandbox)
        except MultusError as error:
            logger.warning("pod %s/%s is not told of its DPDK ports: %s", pod.namespace, pod.name, error)
            return NOTHING
        if not owned:
            return NOTHING
        limits = container_of(pod, {item.resource for item, _ in owned if item.resource})

        def work() -> Published:
            ports = [self._port(item, record, results[item.ifname]) for item, record in owned]
            lacks = (*self._without_nodes(owned), *lacking(limits, ports, read_pages(self._sysfs.root)))
            try:
                made = make_map(
                    ports,
                    pod=f"{sandbox.pod_namespace}/{sandbox.pod_name}",
                    uid=sandbox.pod_uid,
                    sandbox=sandbox.container_id,
                    memory_mb=memory_mb(limits, ports),
                    noiommu=any(self._noiommu(port.pci) for port in ports),
                )
                files = {
                    portfiles.MAP: encode_map(made),
                    portfiles.EAL: f"{' '.join(made.eal)}\n".encode(),
                    portfiles.PORTS: port_table(made),
                }
                for port in ports:
                    portfiles.write(self._directory, port.pci, files)
            except DeviceError as error:
                logger.warning("pod %s/%s is not told of its DPDK ports: %s", pod.namespace, pod.name, error)
                return Published(lacks=(*lacks, f"the map of its ports is missing: {error}"))
            return Published(ports=made, lacks=lacks)

        return await anyio.to_thread.run_sync(work)

    async def removed(self, sandbox: Sandbox) -> None:
        """Remove what a sandbox was told, unless another has the device by now."""
        addresses = [bdf for item in sandbox.attachments if (bdf := _address(item.device_id))]
        if addresses:
            await anyio.to_thread.run_sync(self._remove, sandbox.container_id, addresses)

    def _remove(self, container_id: str, addresses: Sequence[str]) -> None:
        for bdf in addresses:
            try:
                data = portfiles.read(self._directory, bdf, portfiles.MAP, limit=MAP_LIMIT + 1)
                if data and decode_map(data, where=f"the map of {bdf}").sandbox == container_id:
                    portfiles.clear(self._directory, bdf)
            except DeviceError as error:  # it is overwritten for the next pod
                logger.warning("%s", error)

    async def _owned(self, sandbox: Sandbox) -> list[tuple[Attachment, Record]]:
        """The attachments whose VFs programs drive, in the order of the networks."""
        found = []
        for item in sandbox.attachments:
            bdf = _address(item.device_id)
            data = await self._records.load(bdf, KIND) if bdf else None
            record = decode_record(bdf, data) if data is not None else None
            if record is not None and record.is_of(sandbox.container_id, item.ifname) and for_programs(record):
                found.append((item, record))
        return found

    def _port(self, item: Attachment, record: Record, result: Result) -> Port:
        device = self._sysfs.read_one(record.bdf)
        wanted, before = record.wanted, record.original
        inside = [each for each in result.interfaces if each.sandbox]
        return Port(
            network=item.network,
            interface=item.ifname,
            pci=record.bdf,
            numa=device.numa_node if device is not None else -1,
            driver=record.driver,
            mac=inside[0].mac if inside else "",
            vlan=(before.vlan if wanted.vlan is None else wanted.vlan) or 0,
            ips=tuple(ip.address for ip in result.ips),
        )

    def _without_nodes(self, owned: Sequence[tuple[Attachment, Record]]) -> Iterator[str]:
        """VFs that were bound for the pod, and were not given out as such: their containers may not have their nodes.

        Then nobody has made their folders, which are a device plugin's to make.
        """
        for item, record in owned:
            if record.bound and not portfiles.folder(self._directory, record.bdf).is_dir():
                yield (
                    f"{item.ifname} is on {record.driver} by its network's wish, of which its pool does not know: "
                    f'the container has no device node for it; set "driver": "{record.driver}" for {item.resource}'
                )

    def _noiommu(self, bdf: str) -> bool:
        group = read_group(self._sysfs, bdf)
        return group is not None and group.noiommu


def _address(device: str) -> str:
    """The PCI address, "" for a device that has another name."""
    try:
        return parse_address(device) if device else ""
    except AddressError:
        return ""
