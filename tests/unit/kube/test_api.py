"""The transport: credentials that change, connections that break, answers that are none."""

import base64
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from multus.kube import api as transport
from multus.kube.api import Answer, Api, checked
from multus.kube.credentials import read_credentials
from multus.kube.errors import BusyError, ClusterError, NotFoundError, RefusedError
from multus.kube.objects import decode_pod
from multus.kube.requests import all_nads, get_pod, list_page, patch_status, watch
from tests.fake_apiserver import FakeApiServer

Until = Callable[[Callable[[], object]], Awaitable[None]]

pytestmark = pytest.mark.anyio

GET = get_pod("default", "web")


@pytest.fixture(autouse=True)
def _looks_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files are looked at with every request."""
    monkeypatch.setattr(transport, "_LOOK_EVERY", 0.0)


async def read(api: Api, within: float = 10.0, attempt: float = 5.0) -> str:
    return decode_pod(await api.read(GET, within=within, attempt=attempt)).name


async def test_reads(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    async with Api.open(str(kubeconfig)) as api:
        assert await read(api) == "web"
        assert json.loads(await api.read(list_page(all_nads(), limit=5), within=5))["items"] is None
    assert [seen.token for seen in server.seen] == ["secret", "secret"]
    assert server.seen[1].query == {"limit": "5", "resourceVersion": "0"}


@pytest.mark.parametrize("broken", ["reset", "garbage", "cut", 500, 502, 503, 504, 429])
async def test_a_read_is_tried_again(server: FakeApiServer, kubeconfig: Path, broken: Any) -> None:
    server.pod("web")
    server.fail("get pods", broken, times=2)
    async with Api.open(str(kubeconfig)) as api:
        assert await read(api) == "web"
    assert server.count("get pods") >= 3  # the library repeats a broken GET on a kept connection by itself


async def test_a_slow_answer_is_waited_for(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    server.fail("get pods", "slow")
    async with Api.open(str(kubeconfig)) as api:
        assert await read(api) == "web"
    assert len(server.seen) == 1


async def test_a_hanging_server_is_left(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    server.fail("get pods", "hang")
    async with Api.open(str(kubeconfig)) as api:
        assert await read(api, attempt=0.2) == "web"
        server.fail("get pods", "hang", times=100)
        begun = time.monotonic()
        with pytest.raises(ClusterError, match="no answer within"):
            await read(api, within=0.5, attempt=0.2)
        assert time.monotonic() - begun < 5


async def test_retry_after_is_honoured(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    server.fail("get pods", 429, after="1")
    async with Api.open(str(kubeconfig)) as api:
        begun = time.monotonic()
        assert await read(api) == "web"
        assert time.monotonic() - begun >= 1.0
        server.fail("get pods", 503, after="3600")
        with pytest.raises(BusyError, match="503: told to"):
            await read(api, within=2.0)


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (404, NotFoundError, "get pods default/web: the API server answers 404: told to"),
        (403, RefusedError, 'allow verb get on resource pods (API group "")'),
        (400, RefusedError, "400"),
        (422, RefusedError, "422"),
        (409, ClusterError, "409"),
        (401, ClusterError, "token has expired"),
        (302, ClusterError, "is that an API server"),
    ],
)
async def test_statuses(status: int, kind: type[ClusterError], says: str) -> None:
    body = json.dumps({"kind": "Status", "message": "told to"}).encode()
    with pytest.raises(kind) as caught:
        checked(GET, Answer(status=status, body=body))
    assert says in str(caught.value)
    assert type(caught.value) is kind


@pytest.mark.parametrize("body", [b"", b"<html>\nBad\xff Gateway</html>", b"[" * 100_000, b'{"message": 5}'])
def test_a_refusal_may_say_anything(body: bytes) -> None:
    with pytest.raises(BusyError) as caught:
        checked(GET, Answer(status=502, body=body))
    assert len(str(caught.value)) < 400 and "\n" not in str(caught.value)


async def test_a_final_refusal_is_not_repeated(server: FakeApiServer, kubeconfig: Path) -> None:
    async with Api.open(str(kubeconfig)) as api:
        with pytest.raises(NotFoundError):
            await read(api)
        server.fail("get pods", 403)
        with pytest.raises(RefusedError):
            await read(api)
    assert len(server.seen) == 2


@pytest.mark.parametrize("broken", ["reset", 503])
async def test_a_write_is_sent_once(server: FakeApiServer, kubeconfig: Path, broken: Any) -> None:
    server.pod("web")
    server.fail("patch pods", broken)
    async with Api.open(str(kubeconfig)) as api:
        with pytest.raises(ClusterError):
            await api.read(patch_status("default", "web", uid="", status="[]"), within=5)
    assert server.count("patch") == 1


async def test_nobody_listens(tmp_path: Path) -> None:
    async with FakeApiServer().serving() as gone:
        path = gone.kubeconfig(tmp_path / "kubeconfig")
    async with Api.open(str(path)) as api:
        with pytest.raises(ClusterError) as caught:
            await api.read(GET, within=1)
    assert caught.value.retry and "is the API server up" in caught.value.hint


async def test_a_body_is_bounded(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web", annotations={"big": "x" * 5000})
    async with Api.open(str(kubeconfig)) as api:
        with pytest.raises(ClusterError, match="larger than 1000 bytes"):
            await api.ask(GET, timeout=5, limit=1000)
        assert len((await api.ask(GET, timeout=5, limit=10_000)).body) > 5000


async def test_a_stream_gives_what_comes_when_it_comes(server: FakeApiServer, kubeconfig: Path, until: Until) -> None:
    server.nad("a")
    async with Api.open(str(kubeconfig)) as api:
        request = watch(all_nads(), version="0", seconds=30)
        async with api.stream(request, silence=5) as stream:
            assert stream.status == 200
            chunks = stream.chunks()
            assert json.loads(await anext(chunks))["object"]["metadata"]["name"] == "a"
            server.nad("b")
            assert json.loads(await anext(chunks))["object"]["metadata"]["name"] == "b"
            server.end_watches()
            assert [chunk async for chunk in chunks] == []
        async with api.stream(request, silence=0.2) as stream:
            chunks = stream.chunks()
            assert await anext(chunks)
            with pytest.raises(ClusterError):
                async for _ in chunks:
                    pass
    await until(lambda: not server.watching("network-attachment-definitions"))


# credentials


async def test_a_replaced_kubeconfig_is_read_again(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    async with Api.open(str(kubeconfig)) as api:
        assert await read(api) == "web"
        server.tokens = {"new"}
        server.kubeconfig(kubeconfig, token="new")
        assert await read(api) == "web"
        async with FakeApiServer().serving() as other:
            other.pod("web")
            other.kubeconfig(kubeconfig, token="elsewhere")
            assert await read(api) == "web"
            assert [seen.token for seen in other.seen] == ["elsewhere"]
    assert [seen.token for seen in server.seen] == ["secret", "new"]


async def test_a_stream_outlives_the_credentials_that_it_began_with(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    async with Api.open(str(kubeconfig)) as api:
        async with api.stream(watch(all_nads(), version="0", seconds=30), silence=10) as stream:
            server.kubeconfig(kubeconfig, token="new")
            assert await read(api) == "web"
            server.nad("late")
            assert b"late" in await anext(stream.chunks())
        assert await read(api) == "web"


@pytest.mark.parametrize("content", ["", "{", "[]", "a: b", "current-context: 5", "\t", '{"current-context": "x"}'])
async def test_a_kubeconfig_that_breaks_leaves_the_one_before(
    server: FakeApiServer, kubeconfig: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    server.pod("web")
    async with Api.open(str(kubeconfig)) as api:
        kubeconfig.write_text(content)
        for _ in range(3):
            assert await read(api) == "web"
        assert sum("cannot be read" in record.message for record in caplog.records) == 1
        server.tokens = {"new"}
        server.kubeconfig(kubeconfig, token="new")
        assert await read(api) == "web"
    with pytest.raises(RefusedError) as caught:
        kubeconfig.write_text(content)
        read_credentials(str(kubeconfig))
    assert str(kubeconfig) in str(caught.value)


async def test_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(RefusedError, match="No such file"):
        async with Api.open(str(tmp_path / "none")):
            pass


async def test_a_token_that_is_refused_is_read_again_once(
    server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A credential plugin's token expires without any file telling so."""
    monkeypatch.setattr(transport, "_RENEW_EVERY", 0.0)
    tokens, plugin, path = tmp_path / "token", tmp_path / "plugin", tmp_path / "kubeconfig"
    answer = '{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{"token":"%s"}}'
    plugin.write_text(f"#!/bin/sh\nprintf '{answer}' \"$(cat {tokens})\"\n")
    plugin.chmod(0o755)
    content = json.loads(server.kubeconfig(path).read_text())
    content["users"][0]["user"] = {
        "exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": str(plugin), "interactiveMode": "Never"}
    }
    path.write_text(json.dumps(content))
    tokens.write_text("first")
    server.tokens = {"first"}
    server.pod("web")
    async with Api.open(str(path)) as api:
        assert await read(api) == "web"
        tokens.write_text("second")
        server.tokens = {"second"}
        assert await read(api) == "web"
        server.tokens = {"third"}
        assert (await api.ask(GET, timeout=5)).status == 401
    assert [seen.token for seen in server.seen][:3] == ["first", "first", "second"]


async def test_refused_credentials_are_not_renewed_all_the_time(server: FakeApiServer, kubeconfig: Path) -> None:
    server.tokens = {"other"}
    async with Api.open(str(kubeconfig)) as api:
        answers = [(await api.ask(GET, timeout=5)).status for _ in range(3)]
    assert answers == [401, 401, 401]
    assert len(server.seen) == 3


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for 127.0.0.1 and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not installed")
    folder = tmp_path_factory.mktemp("tls")
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    name = ["-subj", "/CN=fake", "-addext", "subjectAltName=IP:127.0.0.1"]
    files = ["-keyout", str(folder / "key"), "-out", str(folder / "crt")]
    subprocess.run([openssl, "req", "-x509", *kind, *name, *files], check=True, capture_output=True)
    return folder


def tls(folder: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(folder / "crt", folder / "key")
    return context


async def test_tls(authority: Path, tmp_path: Path) -> None:
    certificate = (authority / "crt").read_bytes()
    async with FakeApiServer().serving(tls=tls(authority)) as server:
        server.pod("web")
        inline = {"certificate-authority-data": base64.b64encode(certificate).decode()}
        named = {"certificate-authority": str(authority / "crt")}
        path = tmp_path / "kubeconfig"
        for cluster in (inline, named, {"insecure-skip-tls-verify": True}):
            server.kubeconfig(path, **cluster)
            async with Api.open(str(path)) as api:
                assert await read(api) == "web"
        server.kubeconfig(path)
        async with Api.open(str(path)) as api:
            with pytest.raises(ClusterError, match="certificate"):
                await api.ask(GET, timeout=5)
        server.kubeconfig(path, **{"certificate-authority": str(path)})
        with pytest.raises(RefusedError, match="certificates for the API server cannot be used"):
            async with Api.open(str(path)):
                pass


async def test_keys_do_not_stay_on_disk(
    authority: Path, server: FakeApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    path = server.kubeconfig(tmp_path / "kubeconfig")
    content = json.loads(path.read_text())
    content["clusters"][0]["cluster"]["server"] = "https://127.0.0.1:1"
    content["users"][0]["user"] = {
        "client-certificate-data": base64.b64encode((authority / "crt").read_bytes()).decode(),
        "client-key-data": base64.b64encode((authority / "key").read_bytes()).decode(),
    }
    path.write_text(json.dumps(content))
    async with Api.open(str(path)):
        assert list((tmp_path / "tmp").iterdir()) == []


async def test_in_a_pod_with_a_rotated_token(authority: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As the kubelet does it: a link to a directory of its own for each generation, moved in one step."""
    volume = tmp_path / "serviceaccount"
    volume.mkdir()

    def generation(name: str, token: str) -> None:
        (volume / name).mkdir()
        (volume / name / "token").write_text(f"{token}\n")
        shutil.copy(authority / "crt", volume / name / "ca.crt")
        (volume / "..data_tmp").symlink_to(name)
        (volume / "..data_tmp").replace(volume / "..data")

    generation("..one", "one")
    for name in ("token", "ca.crt"):
        (volume / name).symlink_to(f"..data/{name}")
    async with FakeApiServer().serving(tls=tls(authority)) as server:
        server.pod("web")
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])
        async with Api.open(service_account=volume) as api:
            assert await read(api) == "web"
            generation("..two", "two")
            assert await read(api) == "web"
            (volume / "token").unlink()
            assert await read(api) == "web"
    assert [seen.token for seen in server.seen] == ["one", "two", "two"]


async def test_not_in_a_pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    with pytest.raises(RefusedError, match="kubeconfig"):
        async with Api.open(service_account=tmp_path):
            pass


async def test_many_at_once(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    names: list[str] = []

    async def one(api: Api) -> None:
        names.append(await read(api))

    async with Api.open(str(kubeconfig)) as api, anyio.create_task_group() as group:
        for number in range(50):
            group.start_soon(one, api)
            if number % 10 == 0:
                server.kubeconfig(kubeconfig, token=f"t{number}")
                await anyio.sleep(0)
    assert names == ["web"] * 50


async def test_a_cancelled_request_leaves_the_connections_usable(server: FakeApiServer, kubeconfig: Path) -> None:
    server.pod("web")
    server.fail("get pods", "hang")
    async with Api.open(str(kubeconfig)) as api:
        with anyio.move_on_after(0.1) as scope:
            await api.read(GET, within=10)
        assert scope.cancelled_caught
        assert await read(api) == "web"
