"""Makes what the VM boots, from Debian's packages: kernel, initrd, root image; kept in a cache by the recipe's hash.

The kernel is unpacked from its package, never installed: this machine's own boot is not touched. The root image has
DPDK's testpmd, the reference CNI plugins and the Python packages of constraints.txt; the tree under test is not in it.
"""

import fcntl
import hashlib
import lzma
import os
import re
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tests.vm.apt import Apt, CannotRunError, release

HERE: Final = Path(__file__).parent
ROOT: Final = HERE.parent.parent
SITE: Final = "opt/site"
"""Where the Python packages are in the image."""

PACKAGES: Final = (
    "containernetworking-plugins,dpdk,ethtool,iproute2,iptables,iputils-ping,kmod,librte-meta-bus,librte-meta-mempool,"
    "librte-meta-net,procps,python3,tcpdump,udev,util-linux"
)
MODULES: Final = (
    *("9p", "9pnet_virtio", "virtio_blk", "virtio_net", "ext4", "overlay", "igb", "igbvf", "pktgen"),
    *("vfio-pci", "vfio_iommu_type1", "uio_pci_generic", "veth", "macvlan", "ipvlan", "8021q", "vxlan", "tun", "dummy"),
    *("bridge", "br_netfilter", "nf_tables", "nft_chain_nat", "nft_compat", "ip_tables", "iptable_filter"),
    *("iptable_nat", "xt_comment", "xt_MASQUERADE", "xt_conntrack", "xt_mark", "xt_multiport"),
)
BOOT_MODULES: Final = ("virtio_blk", "virtio_pci", "ext4", "overlay")
NOT_IN_THE_VM: Final = (
    "mypy*",
    "ruff*",
    "grpc",
    "grpc_tools",
    "grpcio*",
    "pip*",
    "setuptools*",
    "hatchling*",
    "grimp*",
)
"""Packages that build or check, and would only make the image larger."""


class Image:
    """A directory with `vmlinux`, `initrd` and `root.img`."""

    def __init__(self, directory: Path) -> None:
        self.kernel = directory / "vmlinux"
        self.initrd = directory / "initrd"
        self.root = directory / "root.img"


def cache() -> Path:
    """Where images are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "multus-vm"


def python_of(name: str) -> str:
    """Python's minor version in a Debian release."""
    return {"bookworm": "3.11", "trixie": "3.13"}[name]


def ensure() -> Image:
    """The image of this recipe, built if it is not there yet.

    :raises CannotRunError: this machine cannot build it.
    """
    name = release()
    recipe = hashlib.sha256(name.encode())
    for path in (HERE / "apt.py", HERE / "image.py", HERE / "initrd.sh", ROOT / "constraints.txt"):
        recipe.update(path.read_bytes())
    base = cache()
    base.mkdir(parents=True, exist_ok=True)
    target = base / recipe.hexdigest()[:16]
    with _locked(base / "lock"):
        if not target.exists():
            _prune(base, keep=1)
            print(f"building the VM's image in {target}", flush=True)
            with tempfile.TemporaryDirectory(prefix="build-", dir=base) as scratch:
                Path(scratch).chmod(0o755)
                _build(Path(scratch), name)
                (Path(scratch) / "done").rename(target)
        target.touch()
    return Image(target)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Two lanes at a time build one image."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prune(base: Path, *, keep: int) -> None:
    """Images of older recipes go, but for the ones used last; so do builds that were killed."""
    for left in base.glob("build-*"):
        shutil.rmtree(left, ignore_errors=True)
    images = sorted((each for each in base.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime)
    for old in images[: max(0, len(images) - keep)]:
        shutil.rmtree(old)


def _build(scratch: Path, name: str) -> None:
    if os.geteuid() != 0:
        raise CannotRunError("not root: the VM's root image cannot be made")
    apt = Apt(scratch)
    done = scratch / "done"
    done.mkdir()
    kernel = _unpack(apt, apt.kernel(), scratch)
    boot = next((kernel / "boot").glob("vmlinuz-*"))
    version = boot.name.removeprefix("vmlinuz-")
    (done / "vmlinux").write_bytes(decompressed(boot.read_bytes()))
    if (kernel / "usr/lib/modules").exists() and not (kernel / "lib").exists():
        (kernel / "lib").symlink_to("usr/lib")
    _run("depmod", "-b", kernel, version)
    _initrd(done / "initrd", kernel, version, scratch)

    rootfs = scratch / "rootfs"
    testpmd = next(_unpack(apt, "dpdk-dev", scratch).glob("usr/bin/dpdk-testpmd"))
    include = f"{PACKAGES},{','.join(_libraries(testpmd))}"
    _run("mmdebstrap", "--quiet", "--variant=minbase", f"--include={include}", name, rootfs, apt.mirror)
    shutil.copy(testpmd, rootfs / "usr/bin")
    _modules(kernel, version, rootfs)
    for waste in ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/cache/apt", "var/lib/apt/lists"):
        shutil.rmtree(rootfs / waste, ignore_errors=True)
    _python_packages(rootfs / SITE, python_of(name))
    _run("chroot", rootfs, "python3", "-m", "compileall", "-q", "-j", "2", "/usr/lib/python3", f"/{SITE}", check=False)
    for mount in ("tree", "out"):
        (rootfs / mount).mkdir()
    make_disk(rootfs, done / "root.img")


def make_disk(directory: Path, target: Path) -> Path:
    """A read-only disk of what is in a directory."""
    sizes = [path.lstat().st_size for path in directory.rglob("*")]
    blocks = sum(size // 4096 + 2 for size in sizes) * 5 // 4 + 4096
    options = ("-O", "^has_journal,^resize_inode", "-b", "4096", "-m", "0", "-N", str(len(sizes) + 1000))
    _run("mkfs.ext4", "-q", *options, "-d", directory, target, str(blocks))
    return target


def _run(*command: str | Path, check: bool = True, cwd: Path | None = None) -> str:
    words = [str(each) for each in command]
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    env = {**os.environ, "PATH": path, "LC_ALL": "C.UTF-8"}
    done = subprocess.run(words, capture_output=True, text=True, check=False, cwd=cwd, env=env)
    if check and done.returncode != 0:
        raise CannotRunError(f"{' '.join(words[:4])}: {(done.stderr or done.stdout).strip()[-400:]}")
    return done.stdout


def _unpack(apt: Apt, package: str, scratch: Path) -> Path:
    """What is in a package, in a directory; nothing of it is installed."""
    target = scratch / package
    file = apt.download(package, scratch)
    _run("dpkg", "-x", file, target)
    file.unlink()
    return target


def decompressed(image: bytes) -> bytes:
    """The kernel inside a bzImage: booting it spares the decompressor, which takes seconds under emulation.

    Where it is: Documentation/arch/x86/boot.rst, payload_offset and payload_length.

    :raises CannotRunError: it is compressed with something else than xz or zstd.
    """
    sectors = image[0x1F1] or 4
    offset, length = struct.unpack_from("<II", image, 0x248)
    start = (sectors + 1) * 512 + offset
    payload = image[start : start + length]
    if payload.startswith(b"\xfd7zXZ\0"):
        return lzma.LZMADecompressor().decompress(payload)
    if payload.startswith(b"\x28\xb5\x2f\xfd"):  # the last four bytes are its size, and not zstd's
        return subprocess.run(["zstd", "-dc"], input=payload[:-4], stdout=subprocess.PIPE, check=True).stdout
    raise CannotRunError(f"the kernel is compressed in a way that is not known here: {payload[:4].hex()}")


def _libraries(program: Path) -> list[str]:
    """Debian's names of the DPDK libraries that a program needs: librte_net.so.23 is in librte-net23.

    A name that ends in a digit has a dash before the number: librte-net-mlx5-23.
    """
    found = re.findall(rb"\0librte_([a-z0-9_]+)\.so\.(\d+)(?=\0)", program.read_bytes())
    names = [(name.decode().replace("_", "-"), number.decode()) for name, number in found]
    return sorted({f"librte-{name}{'-' if name[-1].isdigit() else ''}{number}" for name, number in names})


def _wanted(kernel: Path, version: str, modules: Sequence[str]) -> list[Path]:
    """Files of the modules and of what they need, each after what it needs; those built into the kernel have none."""
    found: dict[Path, None] = {}
    for module in modules:
        for line in _run("modprobe", "-d", kernel, "-S", version, "-a", "--show-depends", module).splitlines():
            words = line.split()
            if words[0] == "insmod":
                found[Path(words[1])] = None
    return list(found)


def _plain(module: Path) -> tuple[str, bytes]:
    """Name and content of a module's file, decompressed."""
    if module.suffix == ".xz":
        return module.stem, lzma.decompress(module.read_bytes())
    if module.suffix == ".zst":
        return module.stem, subprocess.run(["zstd", "-dc", module], stdout=subprocess.PIPE, check=True).stdout
    return module.name, module.read_bytes()


def _modules(kernel: Path, version: str, rootfs: Path) -> None:
    source = kernel / "lib/modules" / version
    target = rootfs / "lib/modules" / version
    target.mkdir(parents=True)
    for listing in ("modules.builtin", "modules.builtin.modinfo", "modules.order"):
        shutil.copy(source / listing, target)
    for module in _wanted(kernel, version, MODULES):
        name, content = _plain(module)
        (target / name).write_bytes(content)
    _run("depmod", "-b", rootfs, version)


def _initrd(target: Path, kernel: Path, version: str, scratch: Path) -> None:
    tree = scratch / "initrd-tree"
    for directory in ("bin", "mod", "proc", "sys", "dev", "lower", "rw", "new"):
        (tree / directory).mkdir(parents=True)
    busybox = shutil.which("busybox")
    assert busybox is not None
    shutil.copy(busybox, tree / "bin/busybox")
    shutil.copy(HERE / "initrd.sh", tree / "init")
    (tree / "init").chmod(0o755)
    for number, module in enumerate(_wanted(kernel, version, BOOT_MODULES)):
        name, content = _plain(module)
        (tree / "mod" / f"{number:03d}-{name}").write_bytes(content)
    _run("sh", "-c", f"find . | cpio -o -H newc --quiet > '{target}'", cwd=tree)


def _python_packages(target: Path, version: str) -> None:
    """The packages of constraints.txt for the VM's Python: this environment's where that is the same minor version."""
    target.parent.mkdir(exist_ok=True)
    if version == f"{sys.version_info.major}.{sys.version_info.minor}":
        site = next(Path(each) for each in sys.path if each.endswith("site-packages"))
        shutil.copytree(site, target, ignore=shutil.ignore_patterns("*.pth", "__pycache__"))
    else:
        wheels = ("--only-binary=:all:", "--platform=manylinux_2_28_x86_64", "--platform=manylinux2014_x86_64")
        pip = (sys.executable, "-m", "pip", "-q", "--disable-pip-version-check", "install", "--no-compile", "--target")
        _run(*pip, target, *wheels, f"--python-version={version}", "--require-hashes", "-r", ROOT / "constraints.txt")
    for pattern in NOT_IN_THE_VM:
        for waste in target.glob(pattern):
            shutil.rmtree(waste, ignore_errors=True)
