"""A host in a temporary directory, and what tests of the installation do to it."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from multus.install.host import Options
from multus.settings import DaemonSettings, parse_daemon

Snapshot = dict[str, tuple[int, bytes]]


def program(version: str) -> bytes:
    """What passes for a release of the shim."""
    return b"\x7fELF\x02\x01" + bytes(64) + b"\0multus " + version.encode() + b"\n\0" + bytes(64)


class Host(msgspec.Struct, frozen=True, kw_only=True):
    """The directories of one."""

    root: Path
    bin_dir: Path
    conf_dir: Path
    state: Path
    shim: Path

    def settings(self, **keys: Any) -> DaemonSettings:
        """As a daemon's file with these keys over the host's directories."""
        given = {
            "cniConfigDir": str(self.conf_dir),
            "cniDir": str(self.state),
            "daemonSocketDir": "/nonexistent",
        } | keys
        return parse_daemon(json.dumps(given).encode(), where="test", cores=1)

    def options(self, *, names: tuple[str, ...] = ("multus",), conf: bool = True, **keys: Any) -> Options:
        """To install the shim and the configuration."""
        return Options(settings=self.settings(**keys), bin_dir=self.bin_dir, shim=self.shim, names=names, conf=conf)

    def master(self, name: str = "10-flannel.conflist", **keys: Any) -> Path:
        """The default network's configuration, written."""
        conf = {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel"}], **keys}
        path = self.conf_dir / name
        path.write_text(json.dumps({key: value for key, value in conf.items() if value is not None}))
        return path

    def written(self, name: str = "00-multus.conflist") -> dict[str, Any]:
        """Our configuration as it lies there."""
        found: dict[str, Any] = json.loads((self.conf_dir / name).read_bytes())
        return found

    def snapshot(self) -> Snapshot:
        """Everything on the host: mode and content (or target) of each file, link and directory."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            mode = path.lstat().st_mode
            content = path.read_bytes() if stat.S_ISREG(mode) else b""
            found[str(path)] = (mode, bytes(path.readlink()) if stat.S_ISLNK(mode) else content)
        return found


@pytest.fixture
def host(tmp_path: Path) -> Host:
    root = tmp_path / "host"
    made = Host(
        root=root,
        bin_dir=root / "opt/cni/bin",
        conf_dir=root / "etc/cni/net.d",
        state=root / "var/lib/cni/multus",
        shim=tmp_path / "package/multus",
    )
    for directory in (made.bin_dir, made.conf_dir, made.shim.parent):
        directory.mkdir(parents=True)
    made.shim.write_bytes(program("2.0.0"))
    (made.bin_dir / "bridge").write_bytes(b"\x7fELF bridge")
    return made


@pytest.fixture
def release() -> Callable[[str], bytes]:
    return program
