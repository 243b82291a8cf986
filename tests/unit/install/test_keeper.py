"""The service that keeps the configuration right while the daemon runs."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import anyio
import pytest

from multus.install import place
from multus.install.errors import InstallError
from multus.install.keeper import ConfKeeper
from multus.install.steps import holding

if TYPE_CHECKING:
    from .conftest import Host

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def running(keeper: ConfKeeper) -> AsyncIterator[None]:
    async with anyio.create_task_group() as group:
        await group.start(keeper.run)
        yield
        group.cancel_scope.cancel()


def keeper_of(host: "Host", **keys: Any) -> ConfKeeper:
    """Rechecks come too late for a test to pass by them: events have to do it."""
    return ConfKeeper(host.settings(**keys), recheck=600, retry=0.02)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.005)


def plugin(host: "Host") -> dict[str, Any]:
    """Our entry of the list, or nothing while there is none."""
    try:
        found: dict[str, Any] = host.written()["plugins"][0]
    except FileNotFoundError:
        return {}
    return found


async def test_started_means_that_the_configuration_is_there(host: "Host") -> None:
    host.master()
    async with running(keeper_of(host)):
        assert plugin(host)["clusterNetwork"].endswith("/10-flannel.conflist")
    assert plugin(host), "it stays when the daemon stops"


async def test_nothing_is_written_when_nothing_changed(host: "Host") -> None:
    master = host.master()
    async with running(keeper_of(host)):
        pass
    info = (host.conf_dir / "00-multus.conflist").stat()
    async with running(keeper_of(host)):
        master.write_bytes(master.read_bytes())
        (host.conf_dir / "unrelated").touch()
        await anyio.sleep(0.2)
    assert (host.conf_dir / "00-multus.conflist").stat() == info


async def test_it_waits_for_a_default_network_and_says_so_once(host: "Host", caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with running(keeper_of(host)):
        await anyio.sleep(0.3)  # a dozen looks
        assert list(host.conf_dir.iterdir()) == []
        host.master()
        await until(lambda: bool(plugin(host)))
        await until(lambda: "in order again" in caplog.text)
    assert caplog.text.count("could not find a plugin configuration") == 1
    assert caplog.text.count("wrote") == 1


async def test_directories_that_come_later(host: "Host") -> None:
    host.conf_dir.rmdir()
    async with running(keeper_of(host)):
        await anyio.sleep(0.1)
        host.conf_dir.mkdir()
        host.master()
        await until(lambda: bool(plugin(host)))


async def test_a_directory_that_is_replaced_is_watched_again(host: "Host") -> None:
    host.master()
    async with running(keeper_of(host)):
        host.conf_dir.rename(host.root / "old")
        host.conf_dir.mkdir()
        host.master()
        await until(lambda: bool(plugin(host)))
        host.master(plugins=[{"type": "flannel", "capabilities": {"mac": True}}])
        await until(lambda: plugin(host).get("capabilities") == {"mac": True})


async def test_capabilities_come_and_go_with_the_default_network(host: "Host") -> None:
    """Upstream only ever adds them."""
    host.master()
    async with running(keeper_of(host)):
        for capabilities in ({"portMappings": True, "mac": True}, {"mac": True}, {}):
            host.master(plugins=[{"type": "flannel", "capabilities": capabilities}])
            await until(lambda wanted=capabilities: plugin(host).get("capabilities", {}) == wanted)  # type: ignore[misc]


async def test_an_earlier_default_network_takes_over_and_gives_back(host: "Host") -> None:
    host.master("20-late.conflist")
    async with running(keeper_of(host)):
        early = host.master("05-early.conflist")
        await until(lambda: plugin(host)["clusterNetwork"].endswith("/05-early.conflist"))
        early.unlink()
        await until(lambda: plugin(host)["clusterNetwork"].endswith("/20-late.conflist"))


@pytest.mark.parametrize("content", [None, b"", b'{"cniVersion": "1.0.0", "plugins": [', b"[]"])
async def test_the_last_one_stays_without_a_usable_default_network(
    host: "Host", content: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    """Upstream writes an empty configuration then."""
    master = host.master()
    async with running(keeper_of(host)):
        before = host.written()
        if content is None:
            master.unlink()
        else:
            master.write_bytes(content)
        await until(lambda: "stays as it is" in caplog.text)
        assert host.written() == before
        (host.conf_dir / "00-multus.conflist").unlink()
        await until(lambda: bool(plugin(host)))
        assert host.written() == before
        host.master(plugins=[{"type": "flannel", "capabilities": {"mac": True}}])
        await until(lambda: plugin(host).get("capabilities") == {"mac": True})


async def test_the_form_follows_the_version(host: "Host") -> None:
    single, several = host.conf_dir / "00-multus.conf", host.conf_dir / "00-multus.conflist"
    host.master(cniVersion="0.4.0")
    async with running(keeper_of(host)):
        assert single.exists()
        host.master(cniVersion="1.1.0")
        await until(lambda: several.exists() and not single.exists())
        host.master(cniVersion="0.3.1")
        await until(lambda: single.exists() and not several.exists())


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("00-multus.conflist.cilium_bak"))


def edit(path: Path) -> None:
    path.write_text("{}")


def loosen(path: Path) -> None:
    path.chmod(0o644)


def beside(path: Path) -> None:
    path.with_suffix(".conf").write_text('{"type": "multus"}')


@pytest.mark.parametrize("meddle", [remove, rename, edit, loosen, beside])
async def test_what_somebody_did_to_it_is_put_right(host: "Host", meddle: Callable[[Path], None]) -> None:
    host.master()
    path = host.conf_dir / "00-multus.conflist"

    def right() -> bool:
        return (
            path.exists()
            and path.read_bytes() == wanted
            and path.stat().st_mode & 0o777 == 0o600
            and not path.with_suffix(".conf").exists()
        )

    async with running(keeper_of(host)):
        wanted = path.read_bytes()
        assert right()
        meddle(path)
        await until(right)


async def test_a_fight_is_not_fought_at_full_speed(host: "Host", caplog: pytest.LogCaptureFixture) -> None:
    """As with Cilium, which renames whatever it finds, at once."""
    host.master()
    path = host.conf_dir / "00-multus.conflist"
    async with running(keeper_of(host)):
        begun = anyio.current_time()
        for _ in range(4):
            await until(path.exists)
            path.unlink()
        assert anyio.current_time() - begun >= 0.4
    assert "cni.exclusive" in caplog.text


async def test_a_copied_configuration_follows_its_original(host: "Host", tmp_path: Path) -> None:
    """As a ConfigMap changes: the link beside it is renamed."""
    volume = tmp_path / "volume"
    for version in ("1", "2"):
        (volume / version).mkdir(parents=True)
        body = {"name": version, "type": "multus", "delegates": [{"type": "flannel"}]}
        (volume / version / "70-multus.conf").write_text(json.dumps(body))
    (volume / "..data").symlink_to("1")
    (volume / "70-multus.conf").symlink_to("..data/70-multus.conf")
    async with running(keeper_of(host, multusConfigFile=str(volume / "70-multus.conf"))):
        assert host.written("70-multus.conf")["name"] == "1"
        (volume / "..new").symlink_to("2")
        (volume / "..new").rename(volume / "..data")
        await until(lambda: host.written("70-multus.conf")["name"] == "2")
        (volume / "2/70-multus.conf").write_text("")
        await anyio.sleep(0.2)
        assert host.written("70-multus.conf")["name"] == "2"


async def test_the_first_configuration_waits_for_the_indicator(host: "Host", tmp_path: Path) -> None:
    host.master()
    indicator = tmp_path / "ready"
    async with running(keeper_of(host, readinessindicatorfile=str(indicator))):
        await anyio.sleep(0.1)
        assert not plugin(host)
        indicator.touch()
        await until(lambda: bool(plugin(host)))
        indicator.unlink()
        host.master(plugins=[{"type": "flannel", "capabilities": {"mac": True}}])
        await until(lambda: plugin(host).get("capabilities") == {"mac": True})


async def test_changed_settings_reach_the_configuration(host: "Host") -> None:
    host.master()
    keeper = keeper_of(host, namespaceIsolation=True)
    async with running(keeper):
        assert plugin(host)["namespaceIsolation"] is True
        keeper.update(host.settings(cniConfigDir="/needs/a/restart"))
        await until(lambda: "namespaceIsolation" not in plugin(host))
        keeper.update(host.settings(clusterNetwork="of-the-cluster"))
        await until(lambda: plugin(host)["clusterNetwork"] == "of-the-cluster")


async def test_another_directory_is_watched_once_the_settings_say_so(host: "Host", tmp_path: Path) -> None:
    host.master()
    other = tmp_path / "other"
    other.mkdir()
    keeper = keeper_of(host)
    async with running(keeper):
        keeper.update(host.settings(clusterNetwork=str(other)))
        await anyio.sleep(0.1)
        (other / "10-a.conflist").write_bytes((host.conf_dir / "10-flannel.conflist").read_bytes())
        await until(lambda: plugin(host)["clusterNetwork"] == str(other))
        await anyio.sleep(0.2)  # until our own file's events are over
        conf = {"cniVersion": "1.0.0", "plugins": [{"type": "a", "capabilities": {"mac": True}}]}
        (other / "10-a.conflist").write_text(json.dumps(conf))
        await until(lambda: plugin(host).get("capabilities") == {"mac": True})


@pytest.mark.parametrize("keys", [{"cniConfigDir": "/proc"}, {"multusAutoconfigDir": "a\0b"}, {"cniConfigDir": "a\0b"}])
async def test_a_directory_that_cannot_be_used_is_no_reason_to_die(
    host: "Host", keys: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    host.master()
    given = {"multusAutoconfigDir": str(host.conf_dir)} | keys
    async with running(keeper_of(host, **given)):
        await anyio.sleep(0.1)
    assert len(caplog.records) == 1


async def test_a_held_directory_is_waited_for(host: "Host", monkeypatch: pytest.MonkeyPatch) -> None:
    host.master()
    monkeypatch.setattr(place, "holding", lambda directory: holding(directory, patience=0))
    with holding(host.conf_dir):
        keeper = keeper_of(host)
        async with anyio.create_task_group() as group:
            await group.start(keeper.run)
            assert not plugin(host)
            group.cancel_scope.cancel()
    async with running(keeper_of(host)):
        assert plugin(host)


def test_a_race_with_who_removes_is_no_defect(host: "Host", monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the file system says while others work in the directory comes out as a problem to be told."""
    host.master()

    def gone(*_: object, **__: object) -> list[object]:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(place, "plan_conf", gone)
    kept = place.keep(host.settings())
    assert kept.wanted is None
    assert kept.problem is not None
    assert not isinstance(kept.problem, InstallError)
