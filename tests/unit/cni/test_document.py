"""JSON objects whose values travel untouched."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni import document
from multus.cni.document import MAX_MEMBERS, DocumentError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"{}", {}),
        (b' \n{"a" : 1.50 ,"b":[ 1, 2 ]}\t', {"a": b"1.50", "b": b"[ 1, 2 ]"}),
        (
            b'{"n":1e400,"big":123456789012345678901234567890}',
            {"n": b"1e400", "big": b"123456789012345678901234567890"},
        ),
        (b'{"a":1,"b":2,"a":3}', {"a": b"3", "b": b"2"}),
        (b'{"\\u0061":"\\u00e9"}', {"a": b'"\\u00e9"'}),
        (b'{"":null}', {"": b"null"}),
    ],
)
def test_members_as_they_were_written(data: bytes, expected: dict[str, bytes]) -> None:
    found = document.decode(data)
    assert {key: bytes(item) for key, item in found.items()} == expected
    assert list(found) == list(expected)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b" \r\n\t", "empty"),
        (b"[]", "Expected `object`, got `array`"),
        (b"null", "Expected `object`, got `null`"),
        (b'"{}"', "Expected `object`, got `str`"),
        (b"{", "not JSON: Input data was truncated"),
        (b"{}x", "not JSON: JSON is malformed"),
        (b'{"a":1,}', "not JSON: JSON is malformed"),
        (b'{"a":01}', "not JSON: JSON is malformed"),
        (b"{'a':1}", "not JSON: JSON is malformed"),
        (b'{"a":NaN}', "not JSON: JSON is malformed"),
        (b'\xef\xbb\xbf{"a":1}', "not JSON: JSON is malformed"),
        (b'{"a":"\xff"}', "not UTF-8 (byte 6)"),  # also where nobody would look
        (b'{"a":"\xed\xa0\x80"}', "not UTF-8 (byte 6)"),
        (b'{"a":"\\ud800"}', "not JSON"),
        (b'{"a":' + b"[" * 200_000 + b"]" * 200_000 + b"}", "nested too deeply"),
        (b'{"a":' + b'{"a":' * 200_000, "nested too deeply"),
    ],
)
def test_what_is_no_object_is_refused(data: bytes, words: str) -> None:
    with pytest.raises(DocumentError) as caught:
        document.decode(data)
    assert caught.value.message.startswith(words)


def test_an_object_has_no_more_members_than_one_can_search() -> None:
    def of(count: int) -> bytes:
        return json.dumps({f"k{number}": 1 for number in range(count)}).encode()

    assert len(document.decode(of(MAX_MEMBERS))) == MAX_MEMBERS
    with pytest.raises(DocumentError, match=f"{MAX_MEMBERS + 1} members"):
        document.decode(of(MAX_MEMBERS + 1))


@given(
    st.binary(max_size=60) | st.text(max_size=60).map(str.encode) | JSON.map(lambda value: json.dumps(value).encode())
)
def test_whatever_it_is_it_is_an_object_or_a_document_error(data: bytes) -> None:
    try:
        found = document.decode(data)
    except DocumentError as error:
        assert error.message
        return
    again = json.loads(document.encode(found))
    assert again == json.loads(data)
    for kind in (int, str, bool, list[msgspec.Raw], dict[str, msgspec.Raw]):
        for item in found.values():
            try:
                document.value(item, kind)
            except DocumentError as error:
                assert error.message


@given(st.dictionaries(st.text(max_size=8), JSON, max_size=5))
def test_what_is_decoded_encodes_to_the_same(value: dict[str, Any]) -> None:
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    assert document.encode(document.decode(text)) == text


@pytest.mark.parametrize("item", ["\ud800", object(), {"a": object()}, {1: {object()}}])
def test_what_json_cannot_say_is_refused(item: object) -> None:
    with pytest.raises(DocumentError, match="cannot be written as JSON"):
        document.encode({"a": item})
    with pytest.raises(DocumentError, match="cannot be written as JSON"):
        document.raw(item)


def test_a_value_that_contains_itself_is_refused() -> None:
    loop: list[object] = []
    loop.append(loop)
    with pytest.raises(DocumentError):
        document.raw(loop)
    with pytest.raises(DocumentError):
        document.encode({"a": loop})


def test_a_raw_value_is_not_touched() -> None:
    raw = msgspec.Raw(b"1.500")
    assert document.raw(raw) is raw
    assert document.encode({"a": raw, "b": [raw]}) == b'{"a":1.500,"b":[1.500]}'


@pytest.mark.parametrize(
    ("text", "key", "expected"),
    [
        (b'{"Name":"a","name":"b","NAME":"c"}', "name", b'"b"'),  # the exact spelling, wherever it stands
        (b'{"NAME":"a","nAme":"b"}', "name", b'"b"'),  # else the last
        (b'{"name":null}', "name", None),
        (b'{"Name":null}', "name", None),
        (b'{"names":"a"}', "name", None),
        (b"{}", "name", None),
        ('{"di\u017fableGC":true}'.encode(), "disableGC", b"true"),  # Go folds the long s
        ('{"\u212aey":1}'.encode(), "key", b"1"),  # and the Kelvin sign
    ],
)
def test_members_are_found_in_any_case(text: bytes, key: str, expected: bytes | None) -> None:
    found = document.member(document.decode(text), key)
    assert (None if found is None else bytes(found)) == expected


def test_a_member_is_set_in_its_place_and_under_one_name() -> None:
    given_document = document.decode(b'{"NAME":"a","x":1,"name":"b","Name":"c","y":2}')
    assert document.encode(document.with_member(given_document, "name", "z")) == b'{"x":1,"name":"z","y":2}'
    assert document.encode(document.with_member(given_document, "new", [1])).endswith(b'"y":2,"new":[1]}')
    assert document.encode(document.without_member(given_document, "nAmE")) == b'{"x":1,"y":2}'
    assert list(given_document) == ["NAME", "x", "name", "Name", "y"]  # untouched


@given(
    st.dictionaries(st.text("aAsS\u017f\u212akK", max_size=3), st.integers(), max_size=6), st.text("aAsSkK", max_size=3)
)
def test_a_member_that_is_set_is_the_only_one_of_its_name(given_members: dict[str, int], key: str) -> None:
    start = document.decode(json.dumps(given_members).encode())
    changed = document.with_member(start, key, "new")
    assert [bytes(item) for other, item in changed.items() if document.fold(other) == document.fold(key)] == [b'"new"']
    assert document.spelled(changed, key) == key
    gone = document.without_member(changed, key.swapcase())
    assert document.member(gone, key) is None
    assert len(gone) == len(changed) - 1


@pytest.mark.parametrize(
    ("data", "shown"),
    [
        (b"", "''"),
        (b"\x1b[31mred\n", "'\\x1b[31mred\\n'"),
        (b"\xff\xfe", "'\\\\xff\\\\xfe'"),
        ("é\u202e".encode(), "'\\xe9\\u202e'"),
        (b"x" * 300, f"'{'x' * 200}' and 100 bytes more"),
    ],
)
def test_hostile_bytes_are_quoted(data: bytes, shown: str) -> None:
    assert document.quote(data) == shown


@given(st.binary(max_size=300))
def test_a_quotation_can_be_printed(data: bytes) -> None:
    assert document.quote(data).isascii()
    assert document.quote(data).isprintable()
