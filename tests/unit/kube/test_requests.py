"""What is asked of an API server, byte for byte, and the names that never become part of a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.kube.errors import InvalidNameError
from multus.kube.objects import NETWORK_STATUS
from multus.kube.requests import (
    MERGE_PATCH,
    Request,
    all_nads,
    check_name,
    describe,
    forbidden,
    get_claim,
    get_nad,
    get_pod,
    list_page,
    patch_status,
    pods_on,
    post_event,
    slices_of,
    watch,
)


def test_paths() -> None:
    assert get_pod("shop", "web").path == "/api/v1/namespaces/shop/pods/web"
    assert get_nad("shop", "a.b").path == (
        "/apis/k8s.cni.cncf.io/v1/namespaces/shop/network-attachment-definitions/a.b"
    )
    assert get_claim("shop", "c").path == "/apis/resource.k8s.io/v1/namespaces/shop/resourceclaims/c"


def test_lists() -> None:
    first = list_page(pods_on("node-1"), limit=500)
    assert (first.method, first.path, first.query) == (
        "GET",
        "/api/v1/pods",
        (("fieldSelector", "spec.nodeName=node-1"), ("limit", "500"), ("resourceVersion", "0")),
    )
    assert list_page(all_nads(), limit=2, more="tok").query == (("limit", "2"), ("continue", "tok"))
    assert list_page(all_nads(), limit=2, fresh=True).query == (("limit", "2"),)
    assert dict(list_page(slices_of("d.com", ""), limit=2).query)["fieldSelector"] == (
        "spec.nodeName=,spec.driver=d.com"
    )


def test_watch() -> None:
    assert watch(all_nads(), version="7", seconds=300).query == (
        ("watch", "1"),
        ("allowWatchBookmarks", "true"),
        ("resourceVersion", "7"),
        ("timeoutSeconds", "300"),
    )


@pytest.mark.parametrize("uid", ["", "u-1"])
def test_patch_touches_one_annotation_and_names_the_pod_it_means(uid: str) -> None:
    request = patch_status("shop", "web", uid=uid, status="[]")
    assert (request.method, request.path) == ("PATCH", "/api/v1/namespaces/shop/pods/web/status")
    assert request.content_type == MERGE_PATCH
    precondition = {"uid": uid} if uid else {}
    assert request.body == {"metadata": {"annotations": {NETWORK_STATUS: "[]"}, **precondition}}


def _event(name: str = "web", reason: str = "R", message: str = "m") -> Request:
    now = "2026-01-31T12:00:00Z"
    return post_event(
        "shop", name, uid="u", node="n", kind="Warning", reason=reason, message=message, now=now, suffix="abc"
    )


def test_event() -> None:
    request = _event()
    assert (request.method, request.path) == ("POST", "/api/v1/namespaces/shop/events")
    assert request.body is not None
    assert request.body["metadata"] == {"namespace": "shop", "name": "web.abc"}
    assert request.body["involvedObject"] == {
        "apiVersion": "v1",
        "kind": "Pod",
        "namespace": "shop",
        "name": "web",
        "uid": "u",
    }


def test_event_stays_within_what_a_server_takes() -> None:
    request = _event(name="a" * 240 + "-" + "b" * 12, reason="R" * 200, message="m" * 5000)
    assert request.body is not None
    metadata = request.body["metadata"]
    assert isinstance(metadata, dict)
    assert len(metadata["name"]) <= 253 and metadata["name"].endswith("a-bbbbbbbb.abc")
    check_name("shop", metadata["name"], "event")
    reason, message = request.body["reason"], request.body["message"]
    assert isinstance(reason, str) and isinstance(message, str)
    assert (len(reason), len(message), message[-1]) == (128, 1024, "…")


@pytest.mark.parametrize(
    ("namespace", "name"),
    [
        ("", "n"),
        ("a", ""),
        ("a/b", "n"),
        ("a", "../../nodes"),
        ("a", ".."),
        ("a", "."),
        ("a", "x?y"),
        ("a", "x#y"),
        ("a", "x%2fy"),
        ("a", "x y"),
        ("a", "X"),
        ("a", "x\n"),
        ("a\n", "x"),
        ("a.b", "x"),
        ("a" * 64, "x"),
        ("a", "x" * 254),
        ("a", "-x"),
        ("a", "x-"),
        ("a", "a..b"),
        ("a", "é"),
        ("a", "x{0}"),
    ],
)
def test_names_that_no_object_has(namespace: str, name: str) -> None:
    for make in (get_pod, get_nad, get_claim):
        with pytest.raises(InvalidNameError):
            make(namespace, name)
    with pytest.raises(InvalidNameError):
        patch_status(namespace, name, uid="", status="")
    with pytest.raises(InvalidNameError):
        post_event(namespace, name, uid="", node="n", kind="Normal", reason="", message="", now="", suffix="x")


@given(st.text(max_size=12), st.text(max_size=12))
def test_a_path_has_its_parts_or_there_is_none(namespace: str, name: str) -> None:
    try:
        path = get_pod(namespace, name).path
    except InvalidNameError:
        return
    assert path.split("/") == ["", "api", "v1", "namespaces", namespace, "pods", name]
    assert not set(path) & set("?#% \\")


def test_node_names_are_checked_too() -> None:
    with pytest.raises(InvalidNameError):
        pods_on("node-1,metadata.name=x")
    with pytest.raises(InvalidNameError):
        slices_of("d,spec.nodeName=other", "n")


def test_words_for_people() -> None:
    request = get_nad("shop", "net")
    assert describe(request) == "get network-attachment-definitions.k8s.cni.cncf.io shop/net"
    assert "verb get on resource network-attachment-definitions (API group k8s.cni.cncf.io)" in forbidden(request)
    assert describe(list_page(pods_on("n"), limit=1)) == "list pods"
    assert 'verb patch on resource pods/status (API group "")' in forbidden(patch_status("s", "p", uid="", status=""))
