"""The node's kernel, as far as binding needs it. Everything here blocks: call it from a worker thread."""

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from devices import guard
from devices.linux import links, netdevs, netns, routes, vfs
from devices.linux.links import Link
from devices.linux.pci import driver_of
from devices.linux.routes import Route
from devices.linux.sysfs import Sysfs
from dpdk.errors import DpdkError
from dpdk.holders import PROC, Holder, PodName, find_holders, nodes_of
from dpdk.iommu import group_node, noiommu_allowed, read_group
from dpdk.plans import Facts

_MODPROBE_SECONDS: Final = 20.0


class Survey(msgspec.Struct, frozen=True, kw_only=True):
    """What is the same for every VF at one moment: interfaces, those that routes lead over, devices the node needs."""

    links: tuple[Link, ...] = ()
    routed: frozenset[int] = frozenset()
    guarded: Mapping[str, str] = {}


class Kernel:
    """One node's. `pod_name` names the pod of a process that holds a device."""

    def __init__(self, sysfs: Sysfs | None = None, *, proc: Path = PROC, pod_name: PodName = lambda _: "") -> None:
        self.sysfs = sysfs or Sysfs()
        self.proc = proc
        self.pod_name = pod_name

    def survey(self) -> Survey:
        """Look at the whole node, once for any number of VFs.

        :raises KernelError: the kernel did not tell.
        """
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            found, known = links.read_links(connection), routes.read_routes(connection)
        return Survey(
            links=found,
            routed=frozenset(hop.index for route in known if _leads_out(route) for hop in route.hops),
            guarded=guard.devices(self.sysfs.read(), guard.guarded(found, known)),
        )

    def facts(self, bdf: str, survey: Survey) -> Facts:
        """What is to be known of a VF before it is bound.

        :raises KernelError: the kernel did not tell.
        """
        device = self.sysfs.read_one(bdf)
        if device is None:
            return Facts(bdf=bdf, device=None)
        return Facts(
            bdf=bdf,
            device=device,
            boot_id=self.boot_id(),
            group=read_group(self.sysfs, bdf),
            noiommu=noiommu_allowed(self.sysfs),
            links=survey.links,
            routed=survey.routed,
            guarded=survey.guarded.get(bdf, ""),
            holders=self.holders(bdf),
            admin_mac=self.admin_mac(device.physfn, device.vf_index) if device.physfn else "",
            loaded={path.name for path in (self.sysfs.root / "bus/pci/drivers").iterdir()},
        )

    def holders(self, bdf: str) -> tuple[Holder, ...]:
        """Who has the device open. Nobody can where there is no node for it."""
        nodes = nodes_of(bdf, sysfs=self.sysfs.root, dev=self.sysfs.dev)
        if not nodes:
            return ()
        return find_holders(bdf, nodes, proc=self.proc, pod_name=self.pod_name)

    def driver(self, bdf: str) -> str:
        """The device's driver, "" for none.

        :raises DpdkError: it is gone.
        """
        driver = driver_of(bdf, sysfs=self.sysfs.root)
        if not driver and not (self.sysfs.root / "bus/pci/devices" / bdf).exists():
            raise DpdkError(f"{bdf} is gone", hint="its PF's VFs were removed, or the card was unplugged")
        return driver

    def has_interface(self, bdf: str) -> bool:
        """Whether its driver has made an interface."""
        return any((self.sysfs.root / "bus/pci/devices" / bdf).glob("net/*"))

    def node(self, bdf: str) -> Path | None:
        """The device node by which a program gets a device that is bound to a driver for programs; None when none."""
        group = read_group(self.sysfs, bdf)
        if group is not None:
            return group_node(self.sysfs, group)
        device = self.sysfs.read_one(bdf)
        return self.sysfs.dev / device.uio[0] if device is not None and device.uio else None

    def boot_id(self) -> str:
        """This boot's name; "" when the kernel does not tell."""
        try:
            return (self.proc / "sys/kernel/random/boot_id").read_text().strip()
        except OSError:
            return ""

    def load(self, module: str) -> None:
        """Load a driver's module.

        :raises DpdkError: it cannot be loaded.
        """
        hint = "install the kernel's modules; in a container, mount /lib/modules"
        try:
            done = subprocess.run(
                ["modprobe", module], capture_output=True, text=True, timeout=_MODPROBE_SECONDS, check=False
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DpdkError(f"cannot load {module}: {error}", hint=hint) from None
        if done.returncode:
            raise DpdkError(f"cannot load {module}: {done.stderr.strip()[:200]}", hint=hint)

    def admin_mac(self, pf: str, index: int) -> str:
        """The MAC that the PF has for a VF; "" when it does not tell.

        :raises KernelError: the kernel refused.
        """
        ifindex = self._ifindex(pf)
        if not ifindex:
            return ""
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            state = vfs.read(connection, ifindex).get(index)
        return (state.mac or "") if state else ""

    def set_admin_mac(self, pf: str, index: int, mac: str) -> None:
        """Set it.

        :raises DpdkError: the PF has no interface in this namespace.
        :raises KernelError: its driver refused.
        """
        ifindex = self._ifindex(pf)
        if not ifindex:
            raise DpdkError(f"the MAC of VF {index} cannot be set: its PF {pf} has no interface here")
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            vfs.apply(connection, ifindex, index, vfs.SetMac(mac=mac))

    def set_address(self, ifindex: int, mac: str) -> None:
        """Give an interface its own MAC back.

        :raises KernelError: its driver refused.
        """
        with netns.open_socket(guard.OWN_NAMESPACE) as connection:
            netdevs.change(connection, ifindex, netdevs.Change(mac=mac))

    def _ifindex(self, bdf: str) -> int:
        record = self.sysfs.read_one(bdf)
        return record.netdev.ifindex if record is not None and record.netdev is not None else 0


def _leads_out(route: Route) -> bool:
    """Whether somebody made the route: those of an interface that is merely up are local, multicast or link-local."""
    return route.unicast and not route.destination.startswith(("fe80:", "ff00:"))
