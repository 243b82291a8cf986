"""multusctl install and uninstall: their flags, and what they print."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from multus.cli import install
from multus.errors import MultusError
from multus.install.binary import own_shim


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Where everything is; nothing of the real host is named."""
    for name in ("bin", "net.d"):
        (tmp_path / name).mkdir()
    conf = {"cniVersion": "1.0.0", "name": "cbr0", "plugins": [{"type": "flannel"}]}
    (tmp_path / "net.d/10-flannel.conflist").write_text(json.dumps(conf))
    directories = {"--cni-bin-dir": "bin", "--cni-conf-dir": "net.d", "--cni-dir": "state"}
    return [f"{flag}={tmp_path / name}" for flag, name in directories.items()]


def multusctl(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    install.add_parser(parser.add_subparsers(dest="command", required=True))
    chosen = parser.parse_args(arguments)
    return int(chosen.run(chosen))


def written(tmp_path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((tmp_path / "net.d/00-multus.conflist").read_bytes())
    return found


def test_installed_and_uninstalled(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert multusctl("install", *flags, "--dry-run") == 0
    assert capsys.readouterr().out.count("would write") == 2
    assert sorted(tmp_path.rglob("*")) == before
    assert multusctl("install", *flags) == 0
    assert (tmp_path / "bin/multus").read_bytes() == own_shim().read_bytes()
    assert not (tmp_path / "bin/multus-shim").exists()
    assert written(tmp_path)["plugins"][0]["cniDir"] == str(tmp_path / "state")
    assert multusctl("uninstall", *flags, "--dry-run") == 0
    assert multusctl("uninstall", *flags) == 0
    assert sorted(tmp_path.rglob("*")) == before
    assert capsys.readouterr().out.count("would remove") == 2


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        (["--override-network-name"], "name", "cbr0"),
        (["--override-network-name=false"], "name", "multus-cni-network"),
        (["--cni-version=1.1.0"], "cniVersion", "1.1.0"),
    ],
)
def test_flags_of_the_configuration(flags: list[str], tmp_path: Path, given: list[str], key: str, value: str) -> None:
    multusctl("install", *flags, *given)
    assert written(tmp_path)[key] == value


@pytest.mark.parametrize(
    ("given", "key", "value"),
    [
        ("--socket-dir=/run/other", "daemonSocketDir", "/run/other"),
        ("--namespace-isolation=true", "namespaceIsolation", True),
        ("--namespace-isolation", "namespaceIsolation", True),
        ("--global-namespaces=a,b", "globalNamespaces", "a,b"),
        ("--multus-log-to-stderr=false", "logToStderr", False),
        ("--multus-log-level=debug", "logLevel", "debug"),
        ("--multus-log-file=/l", "logFile", "/l"),
        ("--multus-cni-conf-dir=/c", "confDir", "/c"),
        ("--additional-bin-dir=/b", "binDir", "/b"),
        ("--readiness-indicator-file=/r", "readinessindicatorfile", "/r"),
    ],
)
def test_flags_of_the_plugin(flags: list[str], tmp_path: Path, given: str, key: str, value: object) -> None:
    multusctl("install", *flags, given)
    assert written(tmp_path)["plugins"][0][key] == value


def test_the_daemons_file_is_the_base_and_flags_go_over_it(flags: list[str], tmp_path: Path) -> None:
    file = tmp_path / "daemon-config.json"
    file.write_text('{"CNIVersion": "0.4.0", "overrideNetworkName": true, "logLevel": "error", "type": "multus-shim"}')
    multusctl("install", *flags, f"--config={file}", "--cni-version=1.0.0")
    made = written(tmp_path)
    assert (made["cniVersion"], made["name"], made["plugins"][0]["logLevel"]) == ("1.0.0", "cbr0", "error")
    assert made["plugins"][0]["type"] == "multus-shim"
    assert (tmp_path / "bin/multus-shim").exists()


def test_another_shim_under_both_names(flags: list[str], tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_bytes(own_shim().read_bytes() + b"\0")
    multusctl("install", *flags, f"--multus-bin-file={other}", "--multus-shim", "--skip-conf")
    for name in ("multus", "multus-shim"):
        assert (tmp_path / "bin" / name).read_bytes() == other.read_bytes()
    assert not (tmp_path / "net.d/00-multus.conflist").exists()


def test_only_the_configuration(flags: list[str], tmp_path: Path) -> None:
    multusctl("install", *flags, "--skip-multus-binary-copy=true")
    assert list((tmp_path / "bin").iterdir()) == []
    assert written(tmp_path)


def test_another_file_is_the_default_network(flags: list[str], tmp_path: Path) -> None:
    other = tmp_path / "auto"
    other.mkdir()
    for name in ("10-a.conf", "20-b.conf"):
        (other / name).write_text('{"cniVersion": "1.0.0", "type": "bridge", "name": "b"}')
    multusctl("install", *flags, f"--multus-autoconfig-dir={other}", "--multus-master-cni-file-name=20-b.conf")
    assert written(tmp_path)["plugins"][0]["clusterNetwork"] == str(other / "20-b.conf")


@pytest.mark.parametrize(
    "given",
    [
        "--config=/nonexistent/daemon-config.json",
        "--cni-bin-dir=/nonexistent/bin",
        "--cni-version=7",
        "--multus-bin-file=/dev/null",
        "--multus-conf-file=/nonexistent/70-multus.txt",
    ],
)
def test_what_cannot_be_is_told_as_an_error_of_ours(flags: list[str], given: str) -> None:
    with pytest.raises(MultusError):
        multusctl("install", *flags, given)


@pytest.mark.parametrize("given", ["--namespace-isolation=maybe", "--no-such-flag"])
def test_wrong_usage(flags: list[str], given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        multusctl("install", *flags, given)
    assert caught.value.code == 2
    assert "usage" in capsys.readouterr().err
