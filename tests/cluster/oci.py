"""OCI archives of plain layers, as `ctr image import` takes them."""

import hashlib
import io
import json
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

_KIND: Final = "application/vnd.oci.image"
_LONG_AGO: Final = "1970-01-01T00:00:00Z"


def pack(root: Path) -> bytes:
    """The tree under `root` as a layer; everything is root's."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as archive:
        archive.add(root, arcname=".", filter=_owned_by_root)
    return layer.getvalue()


def write(
    target: Path, name: str, layers: Sequence[bytes], *, entrypoint: Sequence[str] = (), command: Sequence[str] = ()
) -> None:
    """The layers as an image of that name, the lowest first."""
    config = _json(
        {
            "architecture": "amd64",
            "os": "linux",
            "created": _LONG_AGO,
            "config": {
                "Entrypoint": list(entrypoint) or None,
                "Cmd": list(command) or None,
                "Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
            },
            "rootfs": {"type": "layers", "diff_ids": [_digest(each) for each in layers]},
            "history": [{"created": _LONG_AGO} for _ in layers],
        }
    )
    manifest = _json(
        {
            "schemaVersion": 2,
            "mediaType": f"{_KIND}.manifest.v1+json",
            "config": _descriptor(config, f"{_KIND}.config.v1+json"),
            "layers": [_descriptor(each, f"{_KIND}.layer.v1.tar") for each in layers],
        }
    )
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name.rpartition(":")[2]}
    index = _json(
        {"schemaVersion": 2, "manifests": [_descriptor(manifest, f"{_KIND}.manifest.v1+json") | {"annotations": names}]}
    )
    with tarfile.open(target, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", index)
        for blob in (config, manifest, *layers):
            _add(archive, f"blobs/sha256/{_digest(blob).partition(':')[2]}", blob)


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
