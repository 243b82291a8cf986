"""The embedded cluster: files come, change, break and go; what is told about pods is written beside them."""

import json
import logging
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import asyncinotify
import pytest

from multus.kube import folder as module
from multus.kube.errors import ClusterError, InvalidNameError, NotFoundError, RefusedError
from multus.kube.folder import FolderCluster
from multus.kube.manifests import made_up_uid
from multus.kube.objects import Pod

pytestmark = pytest.mark.anyio

Until = Callable[[Callable[[], object]], Awaitable[None]]


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SETTLE", 0.02)


def pod(name: str, networks: str = "", extra: str = "") -> str:
    return (
        f"{{kind: Pod, apiVersion: v1, metadata: {{name: {name}{extra}, "
        f"annotations: {{k8s.v1.cni.cncf.io/networks: '{networks}'}}}}}}\n---\n"
    )


def nad(name: str, config: str = "{}") -> str:
    kind = "kind: NetworkAttachmentDefinition, apiVersion: k8s.cni.cncf.io/v1"
    return f"{{{kind}, metadata: {{name: {name}}}, spec: {{config: '{config}'}}}}\n---\n"


@asynccontextmanager
async def running(folder: Path) -> AsyncIterator[FolderCluster]:
    cluster = FolderCluster(folder, node="node-1")
    async with anyio.create_task_group() as group:
        await group.start(cluster.run)
        yield cluster
        group.cancel_scope.cancel()


# reading


async def test_reads_what_is_there_now(tmp_path: Path) -> None:
    cluster = FolderCluster(tmp_path)
    with pytest.raises(NotFoundError, match=str(tmp_path)):
        await cluster.pod("default", "web")
    (tmp_path / "a.yaml").write_text(pod("web", "one"))
    assert (await cluster.pod("default", "web")).networks == "one"
    for number in range(20):  # as fast as can be, in the same file, of the same size
        (tmp_path / "a.yaml").write_text(pod("web", f"n{number:02}"))
        assert (await cluster.pod("default", "web")).networks == f"n{number:02}"
    (tmp_path / "b.yml").write_text(nad("net", '{"a": 1}'))
    assert (await cluster.nad("default", "net")).config == '{"a": 1}'
    (tmp_path / "c.json").write_text('{"kind":"Pod","apiVersion":"v1","metadata":{"name":"j","namespace":"x"}}')
    assert (await cluster.pod("x", "j")).uid == made_up_uid("x", "j")
    (tmp_path / "b.yml").unlink()
    with pytest.raises(NotFoundError) as caught:
        await cluster.nad("default", "net")
    assert 'network-attachment-definitions.k8s.cni.cncf.io "net" not found' in str(caught.value)


async def test_other_files_are_left_alone(tmp_path: Path) -> None:
    for name in ("a.txt", ".a.yaml.swp", ".a.yaml", "a.yaml~", "yaml"):
        (tmp_path / name).write_text(pod("web"))
    (tmp_path / "status").mkdir()
    (tmp_path / "status" / "a.yaml").write_text(pod("web"))
    cluster = FolderCluster(tmp_path)
    with pytest.raises(NotFoundError):
        await cluster.pod("default", "web")


async def test_uids(tmp_path: Path) -> None:
    cluster = FolderCluster(tmp_path)
    (tmp_path / "a.yaml").write_text(pod("web", extra=", uid: u-1"))
    assert (await cluster.pod("default", "web", uid="u-1")).uid == "u-1"
    with pytest.raises(ClusterError, match='expected pod UID "u-2" but got "u-1"'):
        await cluster.pod("default", "web", uid="u-2")


async def test_names_are_checked(tmp_path: Path) -> None:
    cluster = FolderCluster(tmp_path)
    for ask in (cluster.pod, cluster.nad):
        with pytest.raises(InvalidNameError):
            await ask("../..", "web")
    (tmp_path / "a.yaml").write_text(pod("web"))
    await cluster.pod("default", "web")
    with pytest.raises(InvalidNameError):
        await cluster.set_network_status(Pod(namespace="..", name="web"), "[]")


@pytest.mark.parametrize("broken", ["{", "a: [*x]", "\x00", "!!python/none x"])
async def test_a_broken_file_keeps_what_it_last_held(
    tmp_path: Path, broken: str, caplog: pytest.LogCaptureFixture
) -> None:
    cluster = FolderCluster(tmp_path)
    (tmp_path / "a.yaml").write_text(pod("web", "one"))
    (tmp_path / "b.yaml").write_text(nad("net"))
    assert (await cluster.pod("default", "web")).networks == "one"
    (tmp_path / "a.yaml").write_text(broken)
    (tmp_path / "c.yaml").write_text(broken)
    for _ in range(3):
        assert (await cluster.pod("default", "web")).networks == "one"
        assert (await cluster.nad("default", "net")).name == "net"
    told = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 2  # said once, not at every look
    assert str(tmp_path / "a.yaml") in told[0] and "what it last held stays" in told[0]
    assert "nothing is taken from it" in told[1]
    (tmp_path / "a.yaml").write_text(pod("web", "two"))
    assert (await cluster.pod("default", "web")).networks == "two"
    (tmp_path / "a.yaml").write_text(broken)
    await cluster.pod("default", "web")
    assert sum("a.yaml" in record.getMessage() for record in caplog.records) == 2  # broken anew, said anew


async def test_files_that_are_no_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    os.mkfifo(tmp_path / "fifo.yaml")
    (tmp_path / "directory.yaml").mkdir()
    (tmp_path / "dangling.yaml").symlink_to("nowhere")
    with (tmp_path / "huge.yaml").open("wb") as file:
        file.truncate(1 << 40)
    (tmp_path / "good.yaml").write_text(pod("web"))
    cluster = FolderCluster(tmp_path)
    with anyio.fail_after(10):
        assert (await cluster.pod("default", "web")).name == "web"
    for name in ("fifo", "directory", "dangling", "huge"):
        assert f"{name}.yaml" in caplog.text


async def test_one_name_in_two_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "a.yaml").write_text(nad("net", '{"a": 1}') + nad("same"))
    (tmp_path / "b.yaml").write_text(nad("net", '{"b": 1}') + nad("same"))
    cluster = FolderCluster(tmp_path)
    assert (await cluster.nad("default", "net")).config == '{"b": 1}'
    assert caplog.text.count("in another place too") == 1
    assert "NAD default/net" in caplog.text


async def test_a_folder_that_goes_away_keeps_what_it_held(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "manifests"
    folder.mkdir()
    (folder / "a.yaml").write_text(pod("web"))
    cluster = FolderCluster(folder)
    await cluster.pod("default", "web")
    folder.rename(tmp_path / "away")
    assert (await cluster.pod("default", "web")).name == "web"
    assert "what it last held stays" in caplog.text


async def test_many_ask_at_once(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"p{number}.yaml").write_text(pod(f"p{number}"))
    cluster = FolderCluster(tmp_path)
    async with anyio.create_task_group() as group:
        for number in range(30):
            group.start_soon(cluster.pod, "default", f"p{number}")


# watching


async def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="is not there"):
        await FolderCluster(tmp_path / "none").run()


async def test_what_breaks_is_told_without_being_asked(
    tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    async with running(tmp_path):
        (tmp_path / "a.yaml").write_text("{")
        await until(lambda: "a.yaml" in caplog.text)
        (tmp_path / "new").write_text("[")
        (tmp_path / "new").rename(tmp_path / "b.yaml")
        await until(lambda: "b.yaml" in caplog.text)


async def test_a_mounted_config_map(tmp_path: Path, until: Until) -> None:
    """Its files are links through `..data`, which is moved in one step."""
    for version in ("1", "2"):
        (tmp_path / f"..{version}").mkdir()
        (tmp_path / f"..{version}" / "a.yaml").write_text(pod("web", f"v{version}"))
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "a.yaml").symlink_to("..data/a.yaml")
    async with running(tmp_path) as cluster:
        assert (await cluster.pod("default", "web")).networks == "v1"
        (tmp_path / "..tmp").symlink_to("..2")
        (tmp_path / "..tmp").replace(tmp_path / "..data")
        await until(lambda: cluster._pods["default", "web"].networks == "v2")


async def test_a_folder_that_comes_back_is_watched_again(
    tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_LOOK_ANYWAY", 0.05)
    folder = tmp_path / "manifests"
    folder.mkdir()
    async with running(folder) as cluster:
        folder.rmdir()
        await until(lambda: "cannot be read" in caplog.text)
        folder.mkdir()
        (folder / "a.yaml").write_text(pod("web"))
        await until(lambda: ("default", "web") in cluster._pods)


async def test_without_watches_it_is_looked_at(
    tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(asyncinotify.Inotify, "add_watch", refuse)
    monkeypatch.setattr(module, "_LOOK_ANYWAY", 0.05)
    async with running(tmp_path) as cluster:
        assert "is not watched but looked at" in caplog.text
        (tmp_path / "a.yaml").write_text(pod("web"))
        await until(lambda: ("default", "web") in cluster._pods)


# writing


async def test_network_status(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("web"))
    cluster = FolderCluster(tmp_path)
    web = await cluster.pod("default", "web")
    assert web.status is None
    await cluster.set_network_status(web, '[{"name": "n"}]')
    path = tmp_path / "status" / "default_web.json"
    assert json.loads(path.read_text()) == [{"name": "n"}]
    assert (await cluster.pod("default", "web")).status == '[{"name": "n"}]'
    before = path.stat()
    await cluster.set_network_status(web, '[{"name": "n"}]')
    assert path.stat().st_ino == before.st_ino  # not written again
    await cluster.set_network_status(web, "[]")
    assert path.read_text() == "[]\n"
    assert [each.name for each in (tmp_path / "status").iterdir()] == ["default_web.json"]


async def test_network_status_of_a_pod_that_is_gone(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("web"))
    cluster = FolderCluster(tmp_path)
    web = await cluster.pod("default", "web")
    await cluster.set_network_status(Pod(namespace="default", name="web", uid="older"), "[]")
    await cluster.set_network_status(Pod(namespace="default", name="other"), "[]")
    await cluster.set_network_status(Pod(namespace="", name=""), "[]")
    assert not (tmp_path / "status").exists()
    await cluster.set_network_status(web, "[]")
    assert (tmp_path / "status").exists()


async def test_network_status_goes_with_its_pod(tmp_path: Path, until: Until) -> None:
    for name in ("web", "other"):
        (tmp_path / f"{name}.yaml").write_text(pod(name))
    async with running(tmp_path) as cluster:
        for name in ("web", "other"):
            await cluster.set_network_status(await cluster.pod("default", name), "[]")
        (tmp_path / "web.yaml").unlink()
        with pytest.raises(NotFoundError):
            await cluster.pod("default", "web")
        await until(lambda: not (tmp_path / "status" / "default_web.json").exists())
        (tmp_path / "other.yaml").write_text("{")
        await until(lambda: cluster._complaints)
        assert (tmp_path / "status" / "default_other.json").exists()


async def test_network_status_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(pod("web"))
    (tmp_path / "status").write_text("in the way")
    cluster = FolderCluster(tmp_path)
    with pytest.raises(ClusterError, match="default/web"):
        await cluster.set_network_status(await cluster.pod("default", "web"), "[]")


async def test_events(tmp_path: Path, until: Until) -> None:
    (tmp_path / "a.yaml").write_text(pod("web", extra=", uid: u-1"))
    path = tmp_path / "status" / "events.jsonl"
    async with running(tmp_path) as cluster:
        web = await cluster.pod("default", "web")
        await cluster.event(web, kind="Warning", reason="FailedAttachNetwork", message="line\nbreak")
        await cluster.event(web, kind="Normal", reason="AddedInterface", message="second")
        await until(lambda: path.exists() and path.read_text().count("\n") == 2)
    first = json.loads(path.read_text().splitlines()[0])
    assert first.pop("time").endswith("Z")
    assert first == {
        "type": "Warning",
        "reason": "FailedAttachNetwork",
        "message": "line\nbreak",
        "namespace": "default",
        "pod": "web",
        "uid": "u-1",
        "node": "node-1",
    }


async def test_events_are_bounded(tmp_path: Path, until: Until, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_EVENTS", 1000)
    status = tmp_path / "status"
    async with running(tmp_path) as cluster:
        for number in range(100):
            await cluster.event(Pod(namespace="d", name=f"p{number}"), kind="Normal", reason="R", message="m")
        last = status / "events.jsonl"
        await until(lambda: last.exists() and '"p99"' in last.read_text())
    assert sum(path.stat().st_size for path in status.iterdir()) <= 2000
    assert sorted(path.name for path in status.iterdir()) == ["events.1.jsonl", "events.jsonl"]


async def test_events_that_cannot_be_written_are_lost_with_a_line(
    tmp_path: Path, until: Until, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "status").write_text("in the way")
    async with running(tmp_path) as cluster:
        await cluster.event(Pod(namespace="d", name="p"), kind="Normal", reason="R", message="m")
        await until(lambda: "event of pod d/p is lost" in caplog.text)
