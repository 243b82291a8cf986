"""Images for the cluster without a registry: one layer of files, as an OCI archive that `ctr image import` takes.

Ours is made of Debian's packages and of the wheel; the pods' is busybox. No root file system of the machine gets in.
"""

import hashlib
import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).parents[2]
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
_PROGRAMS: Final = {"multusd": "multus.daemon", "multusctl": "multus.cli"}


class ImageError(Exception):
    """An image cannot be made here."""


def name_of_ours() -> str:
    """The image that the manifests ask for."""
    chosen = yaml.safe_load((ROOT / "deploy/base/kustomization.yaml").read_text())["images"][0]
    return f"{chosen['newName']}:{chosen['newTag']}"


def build_ours(target: Path, cache: Path) -> None:
    """The daemon's image. `cache` keeps Debian's packages from one run to the next.

    :raises ImageError: a package cannot be had, or the wheel cannot be built.
    """
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        _unpack_debian(root, cache)
        site = root / "usr/lib/python3/dist-packages"
        site.mkdir(parents=True, exist_ok=True)
        _copy_requirements(site)
        _unpack_wheel(site, root / "usr/bin")
        compiled = subprocess.run(
            [sys.executable, "-m", "compileall", "-q", "-s", directory, "-p", "/", str(site)],
            capture_output=True,
            text=True,
        )
        if compiled.returncode != 0:
            raise ImageError(f"compileall: {compiled.stdout}{compiled.stderr}")
        (root / "usr/bin/python3").unlink(missing_ok=True)
        (root / "usr/bin/python3").symlink_to(_PYTHON)
        for name, module in _PROGRAMS.items():
            program = root / "usr/bin" / name
            program.write_text(f"#!/usr/bin/python3\nimport sys\nfrom {module} import main\nsys.exit(main())\n")
            program.chmod(0o755)
        _make_skeleton(root)
        write(target, name_of_ours(), root, entrypoint=["multusd"])


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
        write(target, name, root, command=command)


def write(target: Path, name: str, root: Path, *, entrypoint: Sequence[str] = (), command: Sequence[str] = ()) -> None:
    """The tree under `root` as an OCI archive of one layer."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(root, arcname=".", filter=_owned_by_root)
    data = layer.getvalue()
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": "1970-01-01T00:00:00Z",
            "config": {
                "Entrypoint": list(entrypoint) or None,
                "Cmd": list(command) or None,
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(data)]},
            "history": [{"created": "1970-01-01T00:00:00Z"}],
        }
    )
    oci = "application/vnd.oci.image"
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{oci}.manifest.v1+json",
            "config": _descriptor(config, f"{oci}.config.v1+json"),
            "layers": [_descriptor(data, f"{oci}.layer.v1.tar")],
        }
    )
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = _json(
        {"schemaVersion": 2, "manifests": [_descriptor(manifest, f"{oci}.manifest.v1+json") | {"annotations": names}]}
    )
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", index)
        for blob in (config, manifest, data):
            _add(archive, f"blobs/sha256/{_digest(blob).partition(':')[2]}", blob)


def _unpack_debian(root: Path, cache: Path) -> None:
    cache.mkdir(parents=True, exist_ok=True)
    absent = [name for name in _PACKAGES if not list(cache.glob(f"{name}_*.deb"))]
    if absent:
        got = subprocess.run(["apt-get", "-qq", "download", *absent], cwd=cache, capture_output=True, text=True)
        if got.returncode != 0:
            raise ImageError(f"apt-get download {' '.join(absent)}: {got.stderr.strip()}")
    for name in _PACKAGES:
        package = sorted(cache.glob(f"{name}_*.deb"))[-1]
        subprocess.run(["dpkg-deb", "-x", package, root], check=True)
    for waste in ("usr/share/doc", "usr/share/man", "usr/share/locale"):
        shutil.rmtree(root / waste, ignore_errors=True)


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


def _owned_by_root(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = "root"
    entry.mtime = 0
    if entry.name == ".":
        entry.mode = 0o755
    return entry


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(data)
    archive.addfile(entry, io.BytesIO(data))


def _descriptor(data: bytes, kind: str) -> dict[str, Any]:
    return {"mediaType": kind, "digest": _digest(data), "size": len(data)}


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
