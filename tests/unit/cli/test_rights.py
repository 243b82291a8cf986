"""What `multusctl doctor` says of the daemon's rights in the cluster, against an API server that reviews them."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from aiohttp import web

from multus.cli.examine import Finding, api_server
from multus.cli.rights import NODE_CLAIM, needed
from tests.fake_apiserver import FakeApiServer

pytestmark = pytest.mark.anyio

ACCOUNT = "system:serviceaccount:kube-system:multus"


class Reviewing(FakeApiServer):
    """One that answers for what an account may do, too."""

    refused: frozenset[tuple[str, str]] = frozenset()
    user: dict[str, Any] | None = None

    def route(self, router: web.UrlDispatcher) -> None:
        super().route(router)
        router.add_post("/apis/authorization.k8s.io/v1/selfsubjectaccessreviews", self._access)
        router.add_post("/apis/authentication.k8s.io/v1/selfsubjectreviews", self._self)

    async def _access(self, request: web.Request) -> web.Response:
        asked = (await request.json())["spec"]["resourceAttributes"]
        resource = "/".join(filter(None, (asked["resource"], asked["subresource"])))
        return web.json_response({"status": {"allowed": (asked["verb"], resource) not in self.refused}})

    async def _self(self, _: web.Request) -> web.Response:
        if self.user is None:
            return web.json_response({"message": "not found"}, status=404)
        return web.json_response({"status": {"userInfo": self.user}})


@pytest.fixture
async def server() -> AsyncIterator[Reviewing]:
    async with Reviewing().serving() as server:
        assert isinstance(server, Reviewing)
        server.user = {"username": ACCOUNT, "extra": {NODE_CLAIM: ["node-1"]}}
        yield server


@pytest.fixture
def look(server: Reviewing, tmp_path: Path) -> Callable[[], Any]:
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": {"server": server.url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path = tmp_path / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return lambda: api_server(str(path), "node-1")


def wrong(found: list[Finding]) -> list[Finding]:
    return [each for each in found if each.level == "wrong"]


async def test_a_daemon_that_may_do_all_it_has_to(look: Callable[[], Any]) -> None:
    found = await look()
    assert wrong(found) == []
    (said,) = [each.what for each in found if each.what.startswith("RBAC allows")]
    for request, _ in needed("node-1"):
        assert f"{request.verb} {request.resource}" in said
    assert f"takes us for {ACCOUNT} of node node-1" in found[-1].what


@pytest.mark.parametrize("what", [("patch", "pods/status"), ("create", "events"), ("watch", "pods")])
async def test_each_right_that_lacks_is_told_with_what_to_do(
    server: Reviewing, look: Callable[[], Any], what: tuple[str, str]
) -> None:
    server.refused = frozenset({what})
    (trouble,) = wrong(await look())
    assert f"RBAC does not allow to {' '.join(what)}: " in trouble.what
    assert trouble.advice.startswith(f"allow verb {what[0]} on resource {what[1]} ")


async def test_a_look_writes_nothing(server: Reviewing, look: Callable[[], Any]) -> None:
    await look()
    assert {each.what for each in server.seen if each.method != "GET"} <= {"create ?"}
    assert server.events == []


@pytest.mark.parametrize(
    ("user", "level", "said"),
    [
        ({"username": ACCOUNT, "extra": {}}, "wrong", "names no node"),
        ({"username": ACCOUNT, "extra": {NODE_CLAIM: ["other"]}}, "wrong", '"nodeName" is node-1'),
        ({"username": "admin"}, "ok", "takes us for admin"),
        (None, "note", "before 1.28"),
    ],
)
async def test_whose_token_it_is(
    server: Reviewing, look: Callable[[], Any], user: dict[str, Any] | None, level: str, said: str
) -> None:
    server.user = user
    last = (await look())[-1]
    assert last.level == level
    assert said in last.what
    assert bool(last.advice) is (level == "wrong")


async def test_an_api_server_that_does_not_review(server: Reviewing, look: Callable[[], Any]) -> None:
    server.user = {"username": json.loads('"x"'), "extra": None}
    assert any("makes no sense" in each.what for each in wrong(await look()))
