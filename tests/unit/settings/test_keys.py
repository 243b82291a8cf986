"""Reading JSON configuration as Go does, from a table of keys."""

import json
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.document import MAX_MEMBERS
from multus.errors import Fault
from multus.settings.keys import (
    Found,
    Key,
    SettingsError,
    boolean,
    csv,
    flags,
    integer,
    members,
    natural,
    nearest,
    nested,
    objects,
    one_of,
    port,
    positive,
    raw_object,
    read_object,
    seconds,
    table,
    text,
    texts,
)


class Inner(msgspec.Struct, frozen=True, kw_only=True):
    size: int = 5
    on: bool = True


INNER = table(Key("size", "size", natural), Key("isOn", "on", boolean))
KEYS = table(
    Key("logFile", "log_file", text),
    Key("limit", "limit", positive),
    Key("disks", "disks", texts),
    Key("inner", "inner", nested(Inner, INNER)),
)


def read(document: str) -> Found:
    return read_object(document.encode(), KEYS, "the file")


def test_what_is_there_and_nothing_else() -> None:
    found = read('{"logFile":"/x","limit": 3 ,"other":[1]}')
    assert found == Found(
        values={"log_file": "/x", "limit": 3}, raw={"logFile": b'"/x"', "limit": b"3"}, unknown=("other",)
    )
    assert read("{}") == Found(values={}, raw={}, unknown=())


@pytest.mark.parametrize("name", ["logFile", "logfile", "LOGFILE", "LogFile", "logF\\u0069le"])
def test_names_in_any_case(name: str) -> None:
    found = read(f'{{"{name}":"/x"}}')
    assert (found.values, found.raw) == ({"log_file": "/x"}, {"logFile": b'"/x"'})


@pytest.mark.parametrize("name", ["di\u017fks", "DISKS", "dis\u212as"])
def test_names_fold_as_in_go_and_no_further(name: str) -> None:
    assert read(f'{{"{name}":["a"]}}').values == {"disks": ("a",)}
    assert read('{"log\ufb01le":"/x"}').unknown == ("log\ufb01le",)  # a ligature that casefold() would take apart


@pytest.mark.parametrize(
    ("document", "limit"),
    [
        ('{"limit":1,"LIMIT":2}', 2),  # the last wins, however it is spelled
        ('{"LIMIT":2,"limit":1}', 1),
        ('{"limit":1,"limit":2}', 2),
        ('{"limit":1,"Limit":null}', 1),  # null leaves what is there
        ('{"Limit":null,"limit":1}', 1),
    ],
)
def test_duplicates_and_null(document: str, limit: int) -> None:
    assert read(document).values == {"limit": limit}
    assert read('{"limit":null,"logFile":null}') == Found(values={}, raw={}, unknown=())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("", "the file is not valid JSON: Input data was truncated"),
        ("{", "the file is not valid JSON: Input data was truncated"),
        ('{"a":1,}', "the file is not valid JSON: JSON is malformed"),
        ("[]", "the file: expected an object, got a list: []"),
        ("null", "the file: expected an object, got null: null"),
        ('"x"', 'the file: expected an object, got a string: "x"'),
        (" 12", "the file: expected an object, got a number: 12"),
        ("true", "the file: expected an object, got a boolean: true"),
        ('{"logFile":1}', "logFile in the file: expected a string, got a number: 1"),
        ('{"LOGFILE":1}', "logFile in the file: expected a string, got a number: 1"),
        ('{"limit":1,"limit":"x"}', 'limit in the file: expected a whole number, got a string: "x"'),
        ('{"limit":0}', "limit in the file: expected a whole number, 1 or more, got a number: 0"),
        ('{"inner":{"size":"1"}}', 'inner.size in the file: expected a whole number, got a string: "1"'),
        ('{"inner":[]}', "inner in the file: expected an object, got a list: []"),
        (
            '{"disks":"%s"}' % ("x" * 60),
            'disks in the file: expected a list of strings, got a string: "' + "x" * 39 + "…",
        ),
    ],
)
def test_what_is_wrong_is_said_with_key_and_file(document: str, message: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(document)
    assert caught.value.message.startswith(message)
    assert caught.value.fault is Fault.OPERATOR
    assert not caught.value.retry


def test_an_error_in_a_nested_object_names_the_whole_place() -> None:
    with pytest.raises(SettingsError) as caught:
        read_object(b'{"inner":[1]}', KEYS, "file in /etc in place")
    assert caught.value.message == "inner in file in /etc in place: expected an object, got a list: [1]"


@pytest.mark.parametrize(
    "data",
    [b'{"x":"\xff"}', b'{"\xff":1}', b'{"x":{"y":"\xed\xa0\x80"}}', b'{"x":' + b"[" * 200_000, b'{"x":"\\ud800"}'],
)
def test_broken_text_is_refused_wherever_it_stands(data: bytes) -> None:
    with pytest.raises(SettingsError, match="the file is not valid JSON"):
        members(data, "the file")


def test_members_are_bounded() -> None:
    def of(count: int) -> bytes:
        return json.dumps({f"k{number}": 1 for number in range(count)}).encode()

    assert len(members(of(MAX_MEMBERS), "the file")) == MAX_MEMBERS
    with pytest.raises(SettingsError, match="at most"):
        members(of(MAX_MEMBERS + 1), "the file")


def choice(value: bytes, where: str) -> Any:
    return one_of("a", "b")(value, where)


GOOD: list[tuple[Callable[[bytes, str], Any], str, object]] = [
    (text, '""', ""),
    (text, '"\\u00e9"', "é"),
    (boolean, "true", True),
    (boolean, "false", False),
    (integer, "0", 0),
    (integer, "-0", 0),
    (integer, str(2**63 - 1), 2**63 - 1),
    (integer, str(-(2**63)), -(2**63)),
    (natural, "0", 0),
    (positive, "1", 1),
    (port, "0", 0),
    (port, "65535", 65535),
    (seconds, "60", 60.0),
    (seconds, "2.5", 2.5),
    (seconds, "1e1", 10.0),
    (seconds, "86400", 86400.0),
    (texts, "[]", ()),
    (texts, '["a","b"]', ("a", "b")),
    (csv, '""', ("",)),
    (csv, '" a,b ,,c"', ("a", "b", "", "c")),
    (flags, "{}", {}),
    (flags, '{"mac":true,"ips":false,"bandwidth":null}', {"mac": True, "ips": False, "bandwidth": False}),
    (objects, "[]", ()),
    (objects, '[{"a":1.50},{}]', (b'{"a":1.50}', b"{}")),
    (raw_object, '{"a": 1}', b'{"a": 1}'),
    (choice, '"a"', "a"),
]
BAD: list[tuple[Callable[[bytes, str], Any], str, str]] = [
    *((text, value, "a string") for value in ("1", "true", "[]", "{}", "null")),
    *((boolean, value, "true or false") for value in ("1", "0", '"true"', '"yes"', "[]", "null")),
    *((integer, value, "a whole number") for value in ("1.0", "1e3", '"1"', "true", "[]", "1.5", "null")),
    *((integer, value, "a whole number in 64 bits") for value in (str(2**63), str(-(2**63) - 1))),
    (integer, "1" * 5000, "a whole number"),
    (natural, "-1", "a whole number, 0 or more"),
    (positive, "0", "a whole number, 1 or more"),
    (positive, "-5", "a whole number, 1 or more"),
    *((port, value, "a port, 0 to 65535") for value in ("-1", "65536")),
    (port, '"9091"', "a whole number"),
    *((seconds, value, "a number of seconds") for value in ('"60"', '"1m"', "true", "1e400", "[]", "null")),
    *((seconds, value, "seconds above 0 and up to 86400") for value in ("0", "-1", "86400.5", "0.0", "-0.0")),
    *((texts, value, "a list of strings") for value in ('"a"', "[1]", '["a",null]', "{}")),
    *((csv, value, "a string") for value in ('["a","b"]', "1", "{}")),
    *((flags, value, "an object of true and false") for value in ('{"mac":"true"}', '{"mac":1}', "[]", "true")),
    *((objects, value, "a list of objects") for value in ("{}", '"x"', "1")),
    *((objects, value, "an object") for value in ("[1]", '[{},"x"]', "[null]", "[[]]")),
    *((raw_object, value, "an object") for value in ("[]", '"{}"', "1")),
    *((choice, value, '"a" or "b"') for value in ('"c"', '"A"', '""')),
    (choice, "1", "a string"),
]


@pytest.mark.parametrize(("reader", "value", "expected"), GOOD)
def test_values(reader: Callable[[bytes, str], Any], value: str, expected: object) -> None:
    found = reader(value.encode(), "k in f")
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(("reader", "value", "expected"), BAD)
def test_values_of_a_wrong_type(reader: Callable[[bytes, str], Any], value: str, expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        reader(value.encode(), "k in f")
    assert f"k in f: expected {expected}, got " in caught.value.message
    assert len(caught.value.message) < 130


@pytest.mark.parametrize(("reader", "value"), [(integer, b'"1"'), (boolean, b'"true"'), (port, b'"9091"')])
def test_quotes_that_should_not_be_there_are_pointed_out(reader: Callable[[bytes, str], Any], value: bytes) -> None:
    with pytest.raises(SettingsError) as caught:
        reader(value, "k in f")
    assert caught.value.hint == "write it without quotes"


def test_the_item_that_is_wrong_is_counted() -> None:
    with pytest.raises(SettingsError, match=r"^item 2 of k in f: expected an object, got a number: 7$"):
        objects(b"[{},{},7]", "k in f")


def test_a_nested_object_fills_its_defaults() -> None:
    assert read('{"inner":{"ISON":false,"size":null,"else":1}}').values == {"inner": Inner(on=False)}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("logFile", "logFile"),
        ("LOGFIL", "logFile"),
        ("log_file", "logFile"),
        ("lmit", "limit"),
        ("xyzzy", ""),
        ("", ""),
        ("l" * 100_000, ""),
    ],
)
def test_nearest(name: str, meant: str) -> None:
    assert nearest(name, ("logFile", "limit", "disks")) == meant


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.binary(max_size=60)
    | JSON.map(lambda value: json.dumps(value).encode())
    | st.dictionaries(st.sampled_from(["logFile", "LIMIT", "disks", "inner", "x"]), JSON).map(
        lambda value: json.dumps(value).encode()
    )
)
def test_whatever_it_is_it_is_read_or_a_settings_error(data: bytes) -> None:
    try:
        found = read_object(data, KEYS, "fuzz")
    except SettingsError as error:
        assert "fuzz" in error.message
    else:
        assert len(found.values) == len(found.raw) <= len(KEYS)


@given(st.sampled_from([reader for reader, _, _ in BAD]), JSON)
def test_any_reader_takes_any_value_or_refuses_it(reader: Callable[[bytes, str], Any], value: object) -> None:
    try:
        reader(json.dumps(value).encode(), "k in f")
    except SettingsError as error:
        assert "k in f: expected " in error.message
