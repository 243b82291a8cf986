"""Network configurations in files: found by name or path, chained, cached, refused."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus import confdir, files
from multus.cni.conf import ConfError, encode_conf
from multus.cni.network import MAX_PLUGINS
from multus.confdir import Files
from multus.errors import MultusError
from multus.files import FileError


def settled() -> int:
    """A time at which whatever stamp a file has is long past."""
    return 2**62


def write(path: Path, body: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(body if isinstance(body, str) else json.dumps(body))
    return path


def single(name: str, kind: str = "macvlan") -> dict[str, Any]:
    return {"cniVersion": "0.3.1", "name": name, "type": kind}


def listed(name: str, *types: str, **top: Any) -> dict[str, Any]:
    return {"cniVersion": "1.0.0", "name": name, "plugins": [{"type": each} for each in types], **top}


def types(found: confdir.Found | None) -> list[str]:
    assert found is not None
    return [plugin.type for plugin in found.conf.plugins]


@pytest.mark.parametrize("suffix", ["conf", "json", "conflist"])
def test_by_name(tmp_path: Path, suffix: str) -> None:
    write(tmp_path / "10-other.conf", single("other"))
    path = write(tmp_path / f"20-x.{suffix}", listed("net1", "ptp") if suffix == "conflist" else single("net1", "ptp"))
    found = Files().by_name(str(tmp_path), "net1")
    assert (found.path, found.conf.name, types(found)) == (str(path), "net1", ["ptp"])


def test_the_first_file_of_that_name_wins(tmp_path: Path) -> None:
    """In the order of bytes, as Go sorts: capitals come first."""
    for name, kind in (("a.conf", "ptp"), ("B.conf", "vlan"), ("10.json", "bridge"), ("9.conf", "ipvlan")):
        write(tmp_path / name, single("net1", kind))
    assert types(Files().by_name(str(tmp_path), "net1")) == ["bridge"]
    (tmp_path / "10.json").unlink()
    (tmp_path / "9.conf").unlink()
    assert types(Files().by_name(str(tmp_path), "net1")) == ["vlan"]


def test_what_is_no_configuration_file(tmp_path: Path) -> None:
    (tmp_path / "00-directory.conf").mkdir()
    for name in ("01-readme.txt", "02-old.conf.bak", "03-conf", ".04-half-written.conf"):
        write(tmp_path / name, "{")
    write(tmp_path / "10.conf", single("net1"))
    assert types(Files().by_name(str(tmp_path), "net1")) == ["macvlan"]


@pytest.mark.parametrize(
    ("name", "body", "reason"),
    [
        ("10-net1.conf", "{", "10-net1.conf: no network configuration"),
        ("10-net1.conf", "", "10-net1.conf: no network configuration: empty"),
        ("10-net1.conf", "[]", "10-net1.conf: no network configuration"),
        ("10-net1.conf", {"name": "x"}, "10-net1.conf: no 'type'.*perhaps this is supposed to be a .conflist"),
        ("10-net1.json", listed("x", "ptp"), "10-net1.json: no 'type'; perhaps this is supposed to be a .conflist?"),
        ("10-net1.conflist", single("x"), "10-net1.conflist: no 'plugins'; perhaps this is supposed to be a .conf?"),
        ("10-net1.conflist", {"name": "x", "plugins": []}, '10-net1.conflist: "plugins" is empty'),
        ("10-net1.conflist", {"cniVersion": "1.0.0", "name": "x"}, "10-net1.conflist: no plugin configs found"),
        ("10-net1.conflist", {"name": "../x", "plugins": [{"type": "a"}]}, '"name" is'),
        ("10-net1.conflist", {"name": "x", "loadOnlyInlinedPlugins": True}, 'there are no "plugins"'),
    ],
)
def test_an_invalid_file_before_the_match_is_an_error(tmp_path: Path, name: str, body: Any, reason: str) -> None:
    write(tmp_path / name, body)
    write(tmp_path / "20-net2.conf", single("net2"))
    with pytest.raises(ConfError, match=reason):
        Files().by_name(str(tmp_path), "net2")


def test_an_invalid_file_after_the_match_is_none(tmp_path: Path) -> None:
    write(tmp_path / "10-net1.conf", single("net1"))
    write(tmp_path / "20-net2.conf", "{")
    assert types(Files().by_name(str(tmp_path), "net1")) == ["macvlan"]


def test_no_such_name(tmp_path: Path) -> None:
    write(tmp_path / "net1.conf", single("another"))
    with pytest.raises(FileError, match=r"no configuration in .* has the name 'net1'") as caught:
        Files().by_name(str(tmp_path), "net1")
    assert caught.value.missing


def test_no_such_directory(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="No such file or directory") as caught:
        Files().by_name(str(tmp_path / "absent"), "net1")
    assert caught.value.missing
    with pytest.raises(FileError, match="Not a directory"):
        Files().by_name(str(write(tmp_path / "file", "x")), "net1")


def test_a_link_to_nothing_and_a_fifo(tmp_path: Path) -> None:
    """Either was meant to be a network, so whichever was asked for may have been it."""
    (tmp_path / "10.conf").symlink_to(tmp_path / "absent")
    with pytest.raises(FileError, match=r"10\.conf"):
        Files().by_name(str(tmp_path), "net1")
    (tmp_path / "10.conf").unlink()
    os.mkfifo(tmp_path / "10.conf")
    with pytest.raises(FileError, match="not a regular file"):
        Files().by_name(str(tmp_path), "net1")


def test_a_link_is_followed(tmp_path: Path) -> None:
    """A ConfigMap is mounted so."""
    write(tmp_path / "..data" / "x.conf", single("net1"))
    (tmp_path / "x.conf").symlink_to("..data/x.conf")
    assert Files().by_name(str(tmp_path), "net1").path == str(tmp_path / "x.conf")


def test_a_file_that_vanishes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "20.conf", single("net1"))
    monkeypatch.setattr(confdir, "_list", lambda directory, suffixes: ("10.conf", "20.conf"))
    assert Files().by_name(str(tmp_path), "net1").path == str(tmp_path / "20.conf")
    assert Files().cluster_network(str(tmp_path)).path == str(tmp_path / "20.conf")


def test_a_name_that_is_not_text(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/10-\xff.conf")).write_text("{")
    write(tmp_path / "20.conf", single("net1"))
    assert types(Files().by_name(str(tmp_path), "net1")) == ["macvlan"]
    assert "not UTF-8" in caplog.text


# clusterNetwork


def test_cluster_network_file(tmp_path: Path) -> None:
    path = write(tmp_path / "any.name", single("net1"))
    assert types(Files().cluster_network(str(path))) == ["macvlan"]
    path = write(tmp_path / "10.conflist", listed("net1", "bridge", "portmap"))
    assert types(Files().cluster_network(str(path))) == ["bridge", "portmap"]


def test_cluster_network_directory(tmp_path: Path) -> None:
    """The first one, whatever its name; .json is not among them, nor what was generated here."""
    write(tmp_path / "00-multus.conf", single("multus-cni-network", "multus-shim"))
    write(tmp_path / "00-multus.conflist", listed("multus-cni-network", "multus-shim"))
    write(tmp_path / "05.json", single("five", "vlan"))
    write(tmp_path / "10.conflist", listed("ten", "bridge"))
    write(tmp_path / "20.conf", "{")
    for value in (str(tmp_path), f"{tmp_path}/"):
        found = Files().cluster_network(value)
        assert (found.path, types(found)) == (str(tmp_path / "10.conflist"), ["bridge"])


def test_cluster_network_directory_with_an_invalid_first(tmp_path: Path) -> None:
    write(tmp_path / "10.conf", "{")
    write(tmp_path / "20.conf", single("net1"))
    with pytest.raises(ConfError, match=r"10\.conf"):
        Files().cluster_network(str(tmp_path))


@pytest.mark.parametrize(
    "value", ["/no/such/file.conf", "{}", "kube-system/net1", "a\0/b", "/a\0b", "/\ud800", "/" + "x" * 300]
)
def test_cluster_network_that_is_not_there(tmp_path: Path, value: str) -> None:
    with pytest.raises(FileError) as caught:
        Files().cluster_network(value.replace("{}", f"{tmp_path}/"))
    str(caught.value).encode()


def test_cluster_network_without_anything_in_it(tmp_path: Path) -> None:
    write(tmp_path / "00-multus.conf", single("multus-cni-network", "multus-shim"))
    with pytest.raises(FileError, match=r"cannot find network: no \.conf or \.conflist file in"):
        Files().cluster_network(str(tmp_path))


def test_root(tmp_path: Path) -> None:
    write(tmp_path / "etc/cni/net.d/10.conf", single("net1"))
    write(tmp_path / "etc/cni/net.d/aux/1.conf", {"type": "tuning"})
    directory = Files(str(tmp_path))
    assert types(directory.by_name("/etc/cni/net.d", "net1")) == ["macvlan"]
    assert types(directory.cluster_network("/etc/cni/net.d")) == ["macvlan"]
    assert types(directory.cluster_network("/etc/cni/net.d/10.conf")) == ["macvlan"]
    assert types(directory.auxiliary("/etc/cni/net.d/10.conf", "aux", "1.0.0")) == ["passthru", "tuning"]


# chains


def chain(tmp_path: Path, **top: Any) -> Path:
    path = write(tmp_path / "10.conflist", listed("kindnet", "ptp", **top))
    write(tmp_path / "kindnet/20-b.conf", {"type": "sbr"})
    write(tmp_path / "kindnet/10-a.conf", {"type": "tuning", "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}})
    write(tmp_path / "kindnet/30-c.conflist", listed("x", "no"))
    write(tmp_path / "kindnet/40-d.json", single("x", "no"))
    return path


def test_subdirectory_chain(tmp_path: Path) -> None:
    path = chain(tmp_path)
    for found in (
        Files().cluster_network(str(path)),
        Files().cluster_network(str(tmp_path)),
        Files().by_name(str(tmp_path), "kindnet"),
    ):
        assert types(found) == ["ptp", "tuning", "sbr"]
        assert b"arp_filter" in encode_conf(found.conf)


def test_subdirectory_chain_that_the_list_forbids(tmp_path: Path) -> None:
    assert types(Files().cluster_network(str(chain(tmp_path, loadOnlyInlinedPlugins=True)))) == ["ptp"]


def test_subdirectory_chain_alone(tmp_path: Path) -> None:
    chain(tmp_path)
    path = write(tmp_path / "10.conflist", {"cniVersion": "1.1.0", "name": "kindnet"})
    assert types(Files().cluster_network(str(path))) == ["tuning", "sbr"]


def test_a_single_conf_has_no_chain(tmp_path: Path) -> None:
    chain(tmp_path)
    path = write(tmp_path / "10.conf", single("kindnet"))
    assert types(Files().cluster_network(str(path))) == ["macvlan"]


def test_subdirectory_chain_with_an_invalid_file(tmp_path: Path) -> None:
    path = chain(tmp_path)
    write(tmp_path / "kindnet/15.conf", {"name": "no type"})
    with pytest.raises(ConfError, match=r"kindnet/15\.conf.*\"type\""):
        Files().cluster_network(str(path))


def test_subdirectory_chain_that_is_too_long(tmp_path: Path) -> None:
    path = chain(tmp_path)
    for number in range(MAX_PLUGINS):
        write(tmp_path / f"kindnet/{number}.conf", {"type": "tuning"})
    with pytest.raises(ConfError, match=f"has {MAX_PLUGINS + 2} plugins in .*kindnet"):
        Files().cluster_network(str(path))


# the auxiliary chain


def test_auxiliary(tmp_path: Path) -> None:
    cluster = write(tmp_path / "10.conflist", listed("kindnet", "ptp"))
    write(tmp_path / "aux/2.conf", {"type": "sbr"})
    write(tmp_path / "aux/1.conf", {"type": "tuning"})
    for value in (str(cluster), str(tmp_path)):
        found = Files().auxiliary(value, "aux", "1.0.0")
        assert found is not None
        assert (found.path, found.conf.name, found.conf.cni_version) == (str(tmp_path / "aux"), "aux", "1.0.0")
        assert types(found) == ["passthru", "tuning", "sbr"]
        assert b'{"type":"passthru","name":"passthru-cni"}' in encode_conf(found.conf)


def test_auxiliary_without_files(tmp_path: Path) -> None:
    cluster = write(tmp_path / "10.conflist", listed("kindnet", "ptp"))
    assert Files().auxiliary(str(cluster), "aux", "1.0.0") is None
    (tmp_path / "aux").mkdir()
    write(tmp_path / "aux/x.conflist", "{")
    assert Files().auxiliary(str(cluster), "aux", "1.0.0") is None


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "../aux", "-a"])
def test_auxiliary_name_that_leads_elsewhere(tmp_path: Path, name: str) -> None:
    write(tmp_path / "aux/1.conf", {"type": "tuning"})
    write(tmp_path / "net.d/10.conf", single("net1"))
    with pytest.raises(ConfError, match="auxiliaryCNIChainName"):
        Files().auxiliary(str(tmp_path / "net.d/10.conf"), name, "1.0.0")


@pytest.mark.parametrize(("body", "reason"), [("{", "1.conf"), ({"type": "multus"}, "this program itself")])
def test_auxiliary_that_cannot_be_used(tmp_path: Path, body: Any, reason: str) -> None:
    write(tmp_path / "aux/1.conf", body)
    with pytest.raises(ConfError, match=reason):
        Files().auxiliary(str(tmp_path / "10.conf"), "aux", "1.0.0")


def test_auxiliary_without_a_version(tmp_path: Path) -> None:
    write(tmp_path / "aux/1.conf", {"type": "tuning"})
    found = Files().auxiliary(str(tmp_path / "10.conf"), "aux", "")
    assert found is not None
    assert found.conf.cni_version == ""


# the cache


def counted(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    read: list[Path] = []
    original = files.read_small

    def reading(path: Path, *, limit: int) -> bytes:
        read.append(path)
        return original(path, limit=limit)

    monkeypatch.setattr(confdir, "read_small", reading)
    return read


def test_what_did_not_change_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = counted(monkeypatch)
    path = chain(tmp_path)
    directory = Files(clock=settled)
    first = directory.cluster_network(str(path))
    assert len(read) == 3
    assert directory.cluster_network(str(path)) == first
    assert directory.cluster_network(str(tmp_path)) == first
    assert len(read) == 3


def test_what_changes_is_seen(tmp_path: Path) -> None:
    path = chain(tmp_path)
    directory = Files(clock=settled)
    assert types(directory.by_name(str(tmp_path), "kindnet")) == ["ptp", "tuning", "sbr"]
    fresh = write(tmp_path / "new", listed("kindnet", "vlan"))
    fresh.replace(path)  # as a configuration is replaced
    assert types(directory.by_name(str(tmp_path), "kindnet")) == ["vlan", "tuning", "sbr"]
    write(tmp_path / "kindnet/30.conf", {"type": "vrf"})
    os.utime(tmp_path / "kindnet", ns=(1, 1))  # the change of the directory is seen at once, whatever the clock's step
    assert types(directory.by_name(str(tmp_path), "kindnet")) == ["vlan", "tuning", "sbr", "vrf"]
    (tmp_path / "kindnet/10-a.conf").unlink()
    assert types(directory.by_name(str(tmp_path), "kindnet")) == ["vlan", "sbr", "vrf"]
    path.unlink()
    with pytest.raises(FileError):
        directory.by_name(str(tmp_path), "kindnet")


def test_a_file_that_just_changed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second change within one tick of the file system's clock would leave no trace in the stamp."""
    path = write(tmp_path / "10.conf", single("net1"))
    changed = max(path.stat().st_mtime_ns, path.stat().st_ctime_ns)
    now = changed + 1_999_999_999
    read = counted(monkeypatch)
    directory = Files(clock=lambda: now)
    directory.cluster_network(str(path))
    directory.cluster_network(str(path))
    assert len(read) == 2
    now = changed + 2_000_000_000
    directory.cluster_network(str(path))
    directory.cluster_network(str(path))
    assert len(read) == 3


def test_a_failure_is_not_kept(tmp_path: Path) -> None:
    path = write(tmp_path / "10.conf", "{")
    directory = Files(clock=settled)
    with pytest.raises(ConfError):
        directory.cluster_network(str(path))
    write(path, single("net1"))
    assert types(directory.cluster_network(str(path))) == ["macvlan"]


def test_the_cache_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(confdir, "_MAX_FILES", 4)
    paths = [write(tmp_path / f"{number}.conf", single("net1")) for number in range(10)]
    directory = Files(clock=settled)
    for _ in range(2):
        for path in paths:
            assert types(directory.cluster_network(str(path))) == ["macvlan"]
    assert len(directory._kept) <= 4


@given(
    st.binary(max_size=200)
    | st.dictionaries(
        st.sampled_from(["name", "type", "plugins", "cniVersion", "loadOnlyInlinedPlugins", "x"]),
        st.none()
        | st.text(max_size=5)
        | st.booleans()
        | st.lists(st.dictionaries(st.just("type"), st.text(max_size=3))),
    ).map(lambda body: json.dumps(body).encode()),
    st.sampled_from(["conf", "conflist"]),
)
def test_only_its_own_errors(tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str) -> None:
    directory = tmp_path_factory.getbasetemp() / "fuzzed-confdir"
    directory.mkdir(exist_ok=True)
    for other in directory.iterdir():
        other.unlink()
    (directory / f"x.{suffix}").write_bytes(data)
    try:
        found = Files().cluster_network(str(directory))
    except MultusError as error:
        str(error).encode()
    else:
        assert found.conf.plugins
