"""Images for the cluster without a registry.

Ours is made of Debian's packages and of the wheel; the pods' is busybox. No root file system of the machine gets in.
"""

import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import yaml

from tests.cluster import oci

ROOT: Final = Path(__file__).parents[2]
_SITE: Final = "usr/lib/python3/dist-packages"
_PYTHON: Final = f"python3.{sys.version_info.minor}"
_PACKAGES: Final = (
    *(f"{_PYTHON}-minimal", f"lib{_PYTHON}-minimal", f"lib{_PYTHON}-stdlib", "libc6", "libgcc-s1", "libcrypt1"),
    *("libexpat1", "zlib1g", "libbz2-1.0", "liblzma5", "libffi8", "libsqlite3-0", "libssl3", "libuuid1", "libudev1"),
    "busybox-static",
)
_MOUNT_POINTS: Final = (
    *("/hostroot", "/etc/multus", "/etc/cni", "/etc/pcidp", "/opt/cni/bin", "/var/lib/cni", "/run/multus"),
    *("/run/netns", "/run/k8s.cni.cncf.io", "/var/lib/kubelet/pod-resources", "/var/lib/kubelet/device-plugins"),
    *("/tmp", "/proc", "/sys", "/dev"),
)
_downloading = threading.Lock()  # images are made side by side
_PROGRAMS: Final = {"multusd": "multus.daemon", "multusctl": "multus.cli"}


class ImageError(Exception):
    """An image cannot be made here."""


def name_of_ours() -> str:
    """The image that the manifests ask for."""
    chosen = yaml.safe_load((ROOT / "deploy/base/kustomization.yaml").read_text())["images"][0]
    return f"{chosen['newName']}:{chosen['newTag']}"


def build_ours(target: Path, cache: Path) -> None:
    """The daemon's image. `cache` keeps what is below our own code from one run to the next: compiling it takes long.

    :raises ImageError: a package cannot be had, or the wheel cannot be built.
    """
    needs = [f"{each.name}=={each.version}" for each in _closure("multus")]
    key = hashlib.sha256(json.dumps([_PYTHON, _PACKAGES, sorted(needs)]).encode()).hexdigest()[:16]
    base = cache / f"base-{key}.tar"
    if not base.exists():
        with tempfile.TemporaryDirectory() as directory:
            root = Path(directory)
            _unpack_debian(root, cache, _PACKAGES)
            site = root / _SITE
            site.mkdir(parents=True, exist_ok=True)
            _copy_requirements(site)
            _compile(root)
            (root / "usr/bin/python3").unlink(missing_ok=True)
            (root / "usr/bin/python3").symlink_to(_PYTHON)
            _make_skeleton(root)
            made = base.with_suffix(f".{os.getpid()}")
            made.write_bytes(oci.pack(root))
            made.replace(base)
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "usr/bin").mkdir(parents=True)
        (root / _SITE).mkdir(parents=True)
        _unpack_wheel(root / _SITE, root / "usr/bin")
        _compile(root)
        for name, module in _PROGRAMS.items():
            program = root / "usr/bin" / name
            program.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
            program.chmod(0o755)
        oci.write(target, name_of_ours(), [base.read_bytes(), oci.pack(root)], entrypoint=["multusd"])


def build_debian(
    target: Path, name: str, cache: Path, packages: Sequence[str], *, programs: Sequence[Path] = ()
) -> None:
    """An image of busybox and a few of Debian's packages, with programs of ours in /opt/bin.

    :raises ImageError: a package cannot be had.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _unpack_debian(root, cache, ["libc6", "busybox-static", *packages])
        for program in programs:
            place = root / "opt/bin"
            place.mkdir(parents=True, exist_ok=True)
            shutil.copy(program, place / program.name)
        for multi in root.glob("usr/sbin/xtables-nft-multi"):
            for family in ("iptables", "ip6tables"):
                for suffix in ("", "-save", "-restore"):
                    (multi.parent / f"{family}{suffix}").symlink_to(multi.name)
        _make_skeleton(root)
        oci.write(target, name, [oci.pack(root)])


def build_busybox(target: Path, name: str, *, command: Sequence[str]) -> None:
    """An image of nothing but busybox."""
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        (root / "bin").mkdir()
        busybox = shutil.which("busybox")
        if busybox is None:
            raise ImageError("busybox is not installed: apt-get install busybox-static")
        shutil.copy(busybox, root / "bin/busybox")
        _make_skeleton(root)
        oci.write(target, name, [oci.pack(root)], command=command)


def _unpack_debian(root: Path, cache: Path, packages: Sequence[str]) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    with _downloading:
        absent = [_spelling(name) for name in packages if not _kept(cache, name)]
        if absent:
            got = subprocess.run(["apt-get", "-qq", "download", *absent], cwd=cache, capture_output=True, text=True)
            if got.returncode != 0:
                raise ImageError(f"apt-get download {' '.join(absent)}: {got.stderr.strip()}")
    for name in packages:
        subprocess.run(["dpkg-deb", "-x", _kept(cache, name)[-1], root], check=True)
    for waste in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / waste, ignore_errors=True)


def _kept(cache: Path, name: str) -> list[Path]:
    return sorted((*cache.glob(f"{name}_*.deb"), *cache.glob(f"{name}t64_*.deb")))


def _spelling(name: str) -> str:
    """As this Debian calls it: 13 has some libraries with 64 bits of time by another name."""
    told = subprocess.run(["apt-cache", "policy", name], capture_output=True, text=True).stdout
    return name if "Candidate:" in told and "Candidate: (none)" not in told else f"{name}t64"


def _compile(root: Path) -> None:
    """All Python below it. Layers have no times, so the compiled files must not ask for their sources'."""
    command = [sys.executable, "-m", "compileall", "-q", "-j", "0", "--invalidation-mode", "unchecked-hash"]
    folders = [str(each) for each in (root / _SITE, root / f"usr/lib/{_PYTHON}") if each.exists()]
    compiled = subprocess.run([*command, "-s", str(root), "-p", "/", *folders], capture_output=True, text=True)
    if compiled.returncode != 0:
        raise ImageError(f"compileall: {compiled.stdout}{compiled.stderr}")


def _make_skeleton(root: Path) -> None:
    """Directories, links and accounts that programs expect; busybox for whatever is not there."""
    for point in _MOUNT_POINTS:
        (root / point.lstrip("/")).mkdir(parents=True, exist_ok=True)
    (root / "tmp").chmod(0o1777)
    if not (root / "var/run").is_symlink():
        (root / "var/run").symlink_to("/run")
    (root / "etc/passwd").write_text("root:x:0:0:root:/:/bin/sh\n")
    (root / "etc/group").write_text("root:x:0:\n")
    applets = subprocess.run([root / "bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout
    for applet in applets.split():
        link = root / "bin" / applet
        if not link.exists() and not link.is_symlink():
            link.symlink_to("busybox")


def _copy_requirements(site: Path) -> None:
    """What multus needs at run time, from the environment that runs the tests."""
    for distribution in _closure("multus"):
        for file in distribution.files or ():
            source = Path(str(file.locate()))
            if ".." in file.parts or "__pycache__" in file.parts or not source.is_file():
                continue
            destination = site / file
            destination.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, destination)


def _closure(name: str) -> Iterable[importlib.metadata.Distribution]:
    from packaging.requirements import Requirement

    found: dict[str, importlib.metadata.Distribution] = {}
    waiting = [name]
    while waiting:
        for text in importlib.metadata.distribution(waiting.pop()).requires or ():
            need = Requirement(text)
            key = re.sub(r"[-_.]+", "-", need.name).lower()
            if key in found or (need.marker and not need.marker.evaluate({"extra": ""})):
                continue
            found[key] = importlib.metadata.distribution(need.name)
            waiting.append(need.name)
    return found.values()


def _unpack_wheel(site: Path, programs: Path) -> None:
    with tempfile.TemporaryDirectory() as directory:
        build = [sys.executable, "-m", "pip", "wheel", "-q", "--disable-pip-version-check", "--no-deps"]
        made = subprocess.run(
            [*build, "--no-build-isolation", "-w", directory, str(ROOT)], capture_output=True, text=True
        )
        if made.returncode != 0:
            raise ImageError(f"pip wheel: {made.stderr.strip()}")
        (wheel,) = Path(directory).glob("multus-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(site)
        for program in site.glob("multus-*.data/scripts/*"):
            shutil.move(program, programs / program.name)
            (programs / program.name).chmod(0o755)
