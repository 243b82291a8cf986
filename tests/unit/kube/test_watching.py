"""Following a collection: what each answer changes, what is asked next, and that cuts in the stream do not matter."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.kube.objects import NAD, decode_nad
from multus.kube.requests import all_nads
from multus.kube.watching import MAX_LINE, Change, Driver, Drop, Lines, LineTooLongError, Lost, Put, Replace


def driver(page_size: int = 500) -> Driver[NAD]:
    return Driver(all_nads(), decode_nad, page_size=page_size)


def obj(name: str, version: str = "", uid: str = "", config: Any = "{}") -> dict[str, Any]:
    metadata = {"name": name, "namespace": "d", "uid": uid or f"uid-{name}", "resourceVersion": version}
    return {"metadata": metadata, "spec": {"config": config}}


def nad(name: str, uid: str = "") -> NAD:
    return NAD(namespace="d", name=name, uid=uid or f"uid-{name}", config="{}")


def page(*items: Any, version: str = "10", more: str = "") -> bytes:
    return json.dumps({"metadata": {"resourceVersion": version, "continue": more}, "items": items or None}).encode()


def line(kind: str, body: Any) -> bytes:
    return json.dumps({"type": kind, "object": body}).encode()


def asked(following: Driver[NAD]) -> dict[str, str]:
    return dict(following.next_request(seconds=300).query)


def listed(version: str = "10") -> Driver[NAD]:
    following = driver()
    assert following.page(page(obj("a"), version=version)) == Replace({("d", "a"): nad("a")})
    return following


def fed(following: Driver[NAD], data: bytes) -> list[Change[NAD]]:
    return list(following.feed(data))


def test_a_list_then_a_watch_from_its_version() -> None:
    following = driver()
    assert asked(following) == {"limit": "500", "resourceVersion": "0"}
    assert following.page(page()) == Replace({})
    assert asked(following)["resourceVersion"] == "10"
    assert asked(following)["watch"] == "1"


def test_pages_come_as_one_change() -> None:
    following = driver(2)
    assert following.page(page(obj("a"), obj("b"), more="tok")) is None
    assert asked(following) == {"limit": "2", "continue": "tok"}
    change = following.page(page(obj("c"), version="11"))
    assert isinstance(change, Replace) and list(change.items) == [("d", "a"), ("d", "b"), ("d", "c")]
    assert following.version == "11"


def test_changes() -> None:
    following = listed()
    assert following.line(line("ADDED", obj("b", "11"))) == Put(nad("b"))
    assert following.line(line("MODIFIED", obj("b", "12", uid="new"))) == Put(nad("b", "new"))
    assert following.line(line("DELETED", obj("b", "13", uid="new"))) == Drop(("d", "b"), "new")
    assert following.line(line("BOOKMARK", {"metadata": {"resourceVersion": "20"}})) is None
    assert following.line(line("INVENTED", obj("x", "21"))) is None
    assert following.version == "21"


def test_an_object_that_cannot_be_read_is_dropped_and_does_not_stop_the_watch() -> None:
    following = listed()
    assert following.line(line("MODIFIED", obj("a", "11", config={"not": "text"}))) == Drop(("d", "a"))
    assert following.version == "11"
    change = driver().page(page(obj("a"), obj("bad", config=[1]), 5, obj("b")))
    assert isinstance(change, Replace) and list(change.items) == [("d", "a"), ("d", "b")]


@pytest.mark.parametrize("status", [{"code": 410}, {"code": 0, "reason": "Expired"}, {"reason": "Gone"}])
def test_a_forgotten_version_costs_a_fresh_list(status: dict[str, Any]) -> None:
    following = listed()
    assert isinstance(following.line(line("ERROR", status)), Lost)
    assert asked(following) == {"limit": "500"}  # no version 0: the server's memory may be as old as ours
    following.page(page())
    following.refused(410)
    following.page(page())
    assert asked(following)["watch"] == "1"


@pytest.mark.parametrize(
    ("status", "again"),
    [(410, "list"), (404, "list"), (400, "list"), (503, "watch"), (429, "watch"), (401, "watch"), (403, "watch")],
)
def test_a_refused_watch(status: int, again: str) -> None:
    following = listed()
    following.refused(status)
    assert following.next_request(seconds=1).verb == again


def test_a_version_that_keeps_failing_is_given_up() -> None:
    following = listed()
    for _ in range(3):
        assert following.version == "10"
        following.refused(504)  # "Too large resource version", after a backup was restored
    assert following.version == ""
    following = listed()
    for _ in range(3):
        assert isinstance(following.line(line("ERROR", {"code": 500})), Lost)
    assert following.version == ""


@pytest.mark.parametrize(("status", "kept"), [(410, False), (400, False), (404, False), (503, True), (429, True)])
def test_a_refused_page(status: int, kept: bool) -> None:
    following = driver()
    following.page(page(obj("a"), more="tok"))
    following.refused(status)
    assert asked(following).get("continue") == ("tok" if kept else None)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>",
        b"[]",
        b"{}",
        b'{"metadata": {}}',
        b'{"metadata": {"resourceVersion": "1"}, "items": {}}',
        b'{"metadata": {"resourceVersion": "1"}, "items": [' + b"[" * 100_000,
    ],
)
def test_a_page_that_is_none(data: bytes) -> None:
    following = driver()
    following.page(page(obj("a"), more="tok"))
    assert isinstance(following.page(data), Lost)
    assert asked(following) == {"limit": "500"}


@pytest.mark.parametrize(
    "garbage",
    [
        b"<html>502</html>",
        b"{}",
        b'{"type": "ADDED", "object": {}}',
        b'{"type": "ADDED", "object": {"metadata": {"name": "x"}}}',
        b'{"type": "ADDED", "object": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        b'{"type": "ERROR", "object": 5}',
        b"\xff\xfe",
    ],
)
def test_garbage_three_times_from_one_version_costs_a_list(garbage: bytes) -> None:
    following = listed()
    for _ in range(2):
        assert isinstance(following.line(garbage), Lost)
    following.line(line("ADDED", obj("b", "11")))
    for _ in range(2):
        assert isinstance(following.line(garbage), Lost)
        assert following.version == "11"
    assert isinstance(following.line(garbage), Lost)
    assert following.version == ""


def test_nothing_is_read_after_the_watch_was_lost() -> None:
    following = listed()
    changes = fed(following, b"garbage\n" + line("ADDED", obj("b", "11")) + b"\n")
    assert [type(change) for change in changes] == [Lost]
    assert following.version == "10"


def test_half_a_line_is_forgotten_with_its_connection() -> None:
    following = listed()
    whole = line("ADDED", obj("b", "11")) + b"\n"
    assert fed(following, whole[:20]) == []
    following.next_request(seconds=1)
    assert fed(following, whole) == [Put(nad("b"))]


def test_a_line_without_end_is_bounded() -> None:
    following = listed()
    changes = fed(following, b"x" * (MAX_LINE + 1))
    assert [type(change) for change in changes] == [Lost]


_EVENTS = st.lists(
    st.tuples(st.sampled_from(["ADDED", "MODIFIED", "DELETED", "BOOKMARK", "ODD"]), st.sampled_from("abc")), max_size=8
)


@given(_EVENTS, st.lists(st.integers(0, 2000), max_size=12), st.sampled_from([b"\n", b"\r\n", b"\n\n"]))
def test_cuts_do_not_matter(events: list[tuple[str, str]], cuts: list[int], end: bytes) -> None:
    stream = b"".join(line(kind, obj(name, str(11 + n))) + end for n, (kind, name) in enumerate(events))
    whole, pieces = listed(), listed()
    expected = fed(whole, stream)
    places = [0, *sorted(min(cut, len(stream)) for cut in cuts), len(stream)]
    got = [change for start, stop in itertools.pairwise(places) for change in pieces.feed(stream[start:stop])]
    assert got == expected
    assert pieces.version == whole.version
    assert len(expected) == sum(kind in ("ADDED", "MODIFIED", "DELETED") for kind, _ in events)


@given(st.lists(st.binary(max_size=60), max_size=6))
def test_any_bytes_give_changes_or_lose_the_watch(chunks: list[bytes]) -> None:
    following = listed()
    for chunk in chunks:
        for change in following.feed(chunk):
            assert isinstance(change, Replace | Put | Drop | Lost)
    following.page(b"".join(chunks))


def test_lines() -> None:
    lines = Lines(5)
    assert list(lines.feed(b"ab\n\n  \ncd")) == [b"ab"]
    assert list(lines.feed(b"e\nfghij\n")) == [b"cde", b"fghij"]
    with pytest.raises(LineTooLongError):
        list(lines.feed(b"abcdef"))
    with pytest.raises(LineTooLongError):
        list(lines.feed(b"abcdef\n"))
    assert list(lines.feed(b"ok\n")) == [b"ok"]
