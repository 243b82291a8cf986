"""A sysfs tree as the kernel would show it: directories, files and symbolic links of PCI devices, made by declaration.

It is data, not a kernel: a write to `sriov_numvfs` or `driver_override` changes that file and nothing else. Tests play
the kernel's part with `grow`, `bind`, `set` and `remove`.
"""

import shutil
from pathlib import Path

_HOST = "devices/pci0000:00"
_UNSET = "(null)"


class FakeSysfs:
    """A tree below `root`: `root/sys` for devices.linux.sysfs.Sysfs, and `root/dev` for device nodes."""

    def __init__(self, root: Path) -> None:
        self.sys = root / "sys"
        self.dev = root / "dev"
        for name in ("bus/pci/devices", "bus/pci/drivers", "class/net", "kernel/iommu_groups", "class/misc"):
            (self.sys / name).mkdir(parents=True, exist_ok=True)
        (self.sys / _HOST).mkdir(parents=True, exist_ok=True)
        self.dev.mkdir(exist_ok=True)
        _write(self.sys / "bus/pci/drivers_probe", "")
        self._ifindex = 1

    def pf(
        self,
        bdf: str,
        *,
        netdev: str = "",
        total: int = 0,
        num: int = 0,
        driver: str = "ice",
        vendor: str = "8086",
        device: str = "1592",
        vf_driver: str = "iavf",
        vf_device: str = "1889",
        vf_netdevs: bool = True,
        numa: int = 0,
        group: int | None = None,
        mac: str = "",
        mtu: int = 1500,
        carrier: bool | None = True,
        arp_type: int = 1,
        offset: int | None = None,
        stride: int = 1,
    ) -> str:
        """A physical function with its first `num` VFs. `total` 0 is a NIC without SR-IOV.

        VF addresses follow from `offset` and `stride`. With `group`, the VFs are in the groups after it. VF netdevs are
        the PF's name with v0, v1 and so on. `carrier` None is an interface that is down.
        """
        path = self.device(bdf, class_=0x020000, vendor=vendor, device=device, driver=driver, numa=numa, group=group)
        if total:
            function = int(bdf[-1])
            self.set(bdf, "sriov_totalvfs", str(total))
            self.set(bdf, "sriov_numvfs", "0")
            self.set(bdf, "sriov_drivers_autoprobe", "1")
            self.set(bdf, "sriov_offset", str(8 + 63 * function if offset is None else offset))
            self.set(bdf, "sriov_stride", str(stride))
            self.set(bdf, "sriov_vf_device", vf_device)
        if netdev:
            self.netdev(bdf, netdev, mac=mac, mtu=mtu, carrier=carrier, arp_type=arp_type)
        for index in range(num):
            self.vf(
                bdf,
                index,
                driver=vf_driver,
                netdev=f"{netdev or path.name}v{index}" if vf_netdevs else "",
                group=None if group is None else group + 1 + index,
            )
        return bdf

    def vf(
        self,
        pf: str,
        index: int,
        *,
        driver: str = "iavf",
        netdev: str = "",
        group: int | None = None,
        mac: str = "",
        mtu: int = 1500,
        carrier: bool | None = True,
        arp_type: int = 1,
        linked: bool = True,
    ) -> str:
        """One VF, and the PF's count of them. `linked` False is the moment before physfn and virtfnN exist."""
        bdf = self.vf_bdf(pf, index)
        parent = self.path(pf)
        self.device(
            bdf,
            class_=0x020000,
            vendor=(parent / "vendor").read_text().strip().removeprefix("0x"),
            device=(parent / "sriov_vf_device").read_text().strip(),
            driver=driver,
            numa=int((parent / "numa_node").read_text()),
            group=group,
        )
        if netdev:
            self.netdev(bdf, netdev, mac=mac, mtu=mtu, carrier=carrier, arp_type=arp_type)
        if linked:
            self.link_vf(pf, index)
        return bdf

    def link_vf(self, pf: str, index: int) -> None:
        """What the kernel does after it announced a VF: physfn, virtfnN, and at the end the count."""
        bdf, parent = self.vf_bdf(pf, index), self.path(pf)
        _link(self.path(bdf) / "physfn", f"../{pf}")
        _link(parent / f"virtfn{index}", f"../{bdf}")
        self.set(pf, "sriov_numvfs", str(len(list(parent.glob("virtfn*")))))

    def grow(self, pf: str, num: int, *, driver: str = "iavf", netdevs: bool = True) -> None:
        """As after a write of `num` to sriov_numvfs that the kernel has finished: VFs are made, or all removed."""
        name = next((path.name for path in sorted(self.path(pf).glob("net/*"))), pf)
        for index in range(int((self.path(pf) / "sriov_totalvfs").read_text())):
            exists = self.path(self.vf_bdf(pf, index)).exists()
            if index < num and not exists:
                self.vf(pf, index, driver=driver, netdev=f"{name}v{index}" if netdevs else "")
            elif index >= num and exists:
                self.remove(self.vf_bdf(pf, index))
        self.set(pf, "sriov_numvfs", str(num))

    def device(
        self,
        bdf: str,
        *,
        class_: int = 0x060400,
        vendor: str = "8086",
        device: str = "0001",
        driver: str = "",
        numa: int = -1,
        group: int | None = None,
        subsystem: str = "8086:0000",
    ) -> Path:
        """Any PCI device; its directory."""
        path = self.sys / _HOST / bdf
        path.mkdir()
        sub_vendor, sub_device = subsystem.split(":")
        for name, value in {
            "class": f"0x{class_:06x}",
            "vendor": f"0x{vendor}",
            "device": f"0x{device}",
            "subsystem_vendor": f"0x{sub_vendor}",
            "subsystem_device": f"0x{sub_device}",
            "numa_node": str(numa),
            "driver_override": _UNSET,
        }.items():
            _write(path / name, value + "\n")
        _link(path / "subsystem", "../../../bus/pci")
        _link(self.sys / "bus/pci/devices" / bdf, f"../../../{_HOST}/{bdf}")
        if group is not None:
            self.group(bdf, group)
        self.bind(bdf, driver)
        return path

    def netdev(
        self,
        bdf: str,
        name: str,
        *,
        mac: str = "",
        mtu: int = 1500,
        carrier: bool | None = True,
        arp_type: int = 1,
        port_name: str = "",
        switch_id: str = "",
        within: str = "",
    ) -> int:
        """A network interface of the device, or of what is `within` it (virtio0); its index."""
        self._ifindex += 1
        path = self.path(bdf) / within / "net" / name
        path.mkdir(parents=True)
        for file, value in {
            "ifindex": str(self._ifindex),
            "address": mac or f"02:00:00:00:{self._ifindex >> 8:02x}:{self._ifindex & 255:02x}",
            "mtu": str(mtu),
            "type": str(arp_type),
            "phys_port_name": port_name,
            "phys_switch_id": switch_id,
        }.items():
            _write(path / file, value + "\n")
        _link(path / "device", "../.." if not within else f"../../../{within}")
        inner = f"{within}/" if within else ""
        _link(self.sys / "class/net" / name, f"../../{_HOST}/{bdf}/{inner}net/{name}")
        self.carrier(name, carrier)
        return self._ifindex

    def carrier(self, netdev: str, carrier: bool | None) -> None:
        """Plug the cable in, pull it, or (None) set the interface down: its carrier cannot be read then."""
        path = self.sys / "class/net" / netdev
        _write(path / "operstate", ("up" if carrier else "down") + "\n")
        if carrier is None:  # reading it gives EINVAL in the kernel; a directory gives EISDIR here
            (path / "carrier").unlink(missing_ok=True)
            (path / "carrier").mkdir(exist_ok=True)
            return
        if (path / "carrier").is_dir():
            (path / "carrier").rmdir()
        _write(path / "carrier", f"{int(carrier)}\n")

    def bind(self, bdf: str, driver: str) -> None:
        """Let `driver` have the device; "" is none. Interfaces stay: take them away with `remove_netdev`."""
        path = self.path(bdf)
        (path / "driver").unlink(missing_ok=True)
        for each in (self.sys / "bus/pci/drivers").glob(f"*/{bdf}"):
            each.unlink()
        if driver:
            home = self.driver(driver)
            _link(path / "driver", f"../../../bus/pci/drivers/{driver}")
            _link(home / bdf, f"../../../../{_HOST}/{bdf}")
        read = {name: (path / name).read_text().strip().removeprefix("0x") for name in ("class", "vendor", "device")}
        sub = [(path / f"subsystem_{name}").read_text().strip()[2:] for name in ("vendor", "device")]
        lines = [f"DRIVER={driver}"] if driver else []
        lines += [
            f"PCI_CLASS={int(read['class'], 16):04X}",
            f"PCI_ID={read['vendor'].upper()}:{read['device'].upper()}",
        ]
        lines += [f"PCI_SUBSYS_ID={':'.join(sub).upper()}", f"PCI_SLOT_NAME={bdf}"]
        _write(path / "uevent", "\n".join(lines) + "\n")

    def driver(self, name: str) -> Path:
        """A driver that is loaded; its directory."""
        home = self.sys / "bus/pci/drivers" / name
        if not home.exists():
            home.mkdir(exist_ok=True)  # asked for by two threads at once, perhaps
            for file in ("bind", "unbind", "new_id"):
                _write(home / file, "")
        return home

    def group(self, bdf: str, number: int, *, name: str = "") -> None:
        """Put the device into an IOMMU group; `name` is vfio-noiommu where there is no IOMMU."""
        home = self.sys / "kernel/iommu_groups" / str(number)
        (home / "devices").mkdir(parents=True, exist_ok=True)
        if name:
            _write(home / "name", name + "\n")
        (self.path(bdf) / "iommu_group").unlink(missing_ok=True)
        _link(self.path(bdf) / "iommu_group", f"../../../kernel/iommu_groups/{number}")
        _link(home / "devices" / bdf, f"../../../../{_HOST}/{bdf}")

    def rdma(self, bdf: str, name: str, *nodes: str) -> None:
        """An RDMA device with its character devices (uverbs0, umad0)."""
        (self.path(bdf) / "infiniband" / name).mkdir(parents=True)
        for node in nodes:
            kind = "infiniband_verbs" if node.startswith("uverbs") else "infiniband_mad"
            (self.path(bdf) / kind / node).mkdir(parents=True)

    def set(self, bdf: str, file: str, value: str) -> None:
        """The content of an attribute, with the line end that the kernel adds."""
        _write(self.path(bdf) / file, value + "\n")

    def get(self, bdf: str, file: str) -> str:
        """The content of an attribute, stripped."""
        return (self.path(bdf) / file).read_text().strip()

    def remove_netdev(self, name: str) -> None:
        """The interface goes: into a pod, or with its driver."""
        link = self.sys / "class/net" / name
        shutil.rmtree(link.resolve())
        link.unlink()

    def remove(self, bdf: str) -> None:
        """The device goes, with all that points to it."""
        path = self.path(bdf)
        for netdev in sorted(path.glob("**/net/*")):
            self.remove_netdev(netdev.name)
        for each in [*(self.sys / _HOST).glob("*/virtfn*"), *(self.sys / "kernel/iommu_groups").glob("*/devices/*")]:
            if each.readlink().name == bdf:
                each.unlink()
        for each in (self.sys / "bus/pci/drivers").glob(f"*/{bdf}"):
            each.unlink()
        (self.sys / "bus/pci/devices" / bdf).unlink()
        shutil.rmtree(path)

    def path(self, bdf: str) -> Path:
        """The device's directory."""
        return self.sys / _HOST / bdf

    def vf_bdf(self, pf: str, index: int) -> str:
        """The address of a PF's VF, as the SR-IOV capability has it."""
        offset, stride = (int((self.path(pf) / f"sriov_{name}").read_text()) for name in ("offset", "stride"))
        domain, bus, rest = pf.split(":")
        slot, function = rest.split(".")
        routing = (int(bus, 16) << 8 | int(slot, 16) << 3 | int(function)) + offset + stride * index
        return f"{domain}:{routing >> 8:02x}:{routing >> 3 & 31:02x}.{routing & 7}"


def _write(path: Path, text: str) -> None:
    path.write_text(text)


def _link(path: Path, target: str) -> None:
    path.symlink_to(target)
