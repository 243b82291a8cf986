"""Which of the node's configurations is the default network."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from multus.install.errors import InstallError, NotYetError
from multus.install.master import find_master, master_directory

if TYPE_CHECKING:
    from .conftest import Host

CONF = '{"cniVersion": "0.4.0", "name": "n", "type": "bridge"}'
OURS = '{"cniVersion": "0.4.0", "name": "m", "type": "multus", "delegates": [{"type": "bridge"}]}'


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (["20-b.conf", "10-a.conflist"], "10-a.conflist"),
        (["9-b.conf", "10-a.conf"], "10-a.conf"),
        (["Z.conf", "a.conf"], "Z.conf"),
        (["00-multus.conf", "00-multus.conflist", "00-multus-extra.conf", "10-a.conf"], "10-a.conf"),
        (["05-x.json", "05-x.conf.bak", ".10-hidden.conf", "10-a.conf"], "10-a.conf"),
    ],
)
def test_the_first_that_is_not_generated_here(host: "Host", files: list[str], expected: str) -> None:
    for name in files:
        (host.conf_dir / name).write_text(CONF)
    (host.conf_dir / "00-dir.conf").mkdir()
    master = find_master(host.settings())
    assert master.network == str(host.conf_dir / expected)
    assert master.conf is not None
    assert master.conf.name == "n"


def test_one_that_calls_multus_would_call_itself(host: "Host") -> None:
    (host.conf_dir / "05-multus.conf").write_text(OURS)
    with pytest.raises(NotYetError, match="could not find a plugin configuration"):
        find_master(host.settings())
    (host.conf_dir / "70-flannel.conf").write_text(CONF)
    assert find_master(host.settings()).network.endswith("/70-flannel.conf")


@pytest.mark.parametrize(
    "data", [b"", b"{", b'{"cniVersion": "0.4.0", "name"', b"[]", b'{"name": "x"}', b'{"plugins": []}', b"\xff"]
)
def test_a_half_written_one_is_waited_for_and_not_passed_over(host: "Host", data: bytes) -> None:
    (host.conf_dir / "10-a.conflist").write_bytes(data)
    (host.conf_dir / "20-b.conf").write_text(CONF)
    with pytest.raises(InstallError, match=r"failed to read the primary CNI plugin config.*10-a\.conflist") as caught:
        find_master(host.settings())
    assert caught.value.hint


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("nowhere")])
def test_what_is_no_file(host: "Host", make: object) -> None:
    make(host.conf_dir / "10-a.conf")  # type: ignore[operator]
    with pytest.raises(InstallError):
        find_master(host.settings())


def test_nothing_there_yet(host: "Host", tmp_path: Path) -> None:
    with pytest.raises(NotYetError, match="could not find a plugin configuration"):
        find_master(host.settings())
    with pytest.raises(NotYetError, match="there is no directory"):
        find_master(host.settings(multusAutoconfigDir=str(tmp_path / "absent")))


def test_a_master_by_name(host: "Host", tmp_path: Path) -> None:
    for name in ("10-a.conf", "20-b.conf"):
        (tmp_path / name).write_text(CONF)
    settings = host.settings(multusAutoconfigDir=str(tmp_path), multusMasterCNI="20-b.conf")
    assert find_master(settings).network == str(tmp_path / "20-b.conf")
    (tmp_path / "20-b.conf").unlink()
    with pytest.raises(NotYetError, match=r"20-b\.conf"):
        find_master(settings)


def test_a_master_by_name_that_would_recurse(host: "Host") -> None:
    with pytest.raises(InstallError, match="to prevent recursive config load"):
        find_master(host.settings(multusMasterCNI="00-multus.conf"))
    (host.conf_dir / "70-multus.conf").write_text(OURS)
    with pytest.raises(InstallError, match="calls multus itself"):
        find_master(host.settings(multusMasterCNI="70-multus.conf"))


def test_plugins_of_the_networks_directory_have_capabilities_too(host: "Host") -> None:
    host.master(plugins=None)
    with pytest.raises(InstallError, match='no "plugins"'):
        find_master(host.settings())
    (host.conf_dir / "cbr0").mkdir()
    (host.conf_dir / "cbr0/10-portmap.conf").write_text('{"type": "portmap", "capabilities": {"portMappings": true}}')
    conf = find_master(host.settings()).conf
    assert conf is not None
    assert [plugin.capabilities for plugin in conf.plugins] == [{"portMappings": True}]


def test_cluster_network_of_the_settings(host: "Host", tmp_path: Path) -> None:
    file = tmp_path / "net.d" / "10-a.conf"
    file.parent.mkdir()
    by_file, by_directory = host.settings(clusterNetwork=str(file)), host.settings(clusterNetwork=str(file.parent))
    for settings in (by_file, by_directory):
        with pytest.raises(NotYetError):
            find_master(settings)
    file.write_text(CONF)
    for settings in (by_file, by_directory):
        master = find_master(settings)
        assert (master.network, master_directory(settings)) == (settings.cluster_network, file.parent)
        assert master.conf is not None
    by_name = host.settings(clusterNetwork="net-of-the-cluster")
    assert (find_master(by_name).network, find_master(by_name).conf) == ("net-of-the-cluster", None)
    assert master_directory(by_name) is None


def test_delegates_of_the_settings(host: "Host") -> None:
    settings = host.settings(delegates=[{"type": "bridge", "cniVersion": "0.4.0"}])
    master = find_master(settings)
    assert master.network == ""
    assert master.conf is not None
    assert master.conf.plugins[0].type == "bridge"
    with pytest.raises(InstallError, match="delegates"):
        find_master(host.settings(delegates=[{"name": "x"}]))


def test_a_relative_directory_does_not_make_a_name_of_the_path(host: "Host", monkeypatch: pytest.MonkeyPatch) -> None:
    host.master()
    monkeypatch.chdir(host.conf_dir)
    assert find_master(host.settings(multusAutoconfigDir=".")).network == str(host.conf_dir / "10-flannel.conflist")
