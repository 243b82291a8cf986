"""What the shim takes out of a configuration: what JSON says, and never a step beyond its end."""

import json
import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

if TYPE_CHECKING:
    from .conftest import Scanner

KEYS = ("daemonSocketDir", "cniDir", "cniVersion", "name")
ABSENT: list[str | None] = [None, None, None, None]


def oracle(pairs: list[tuple[str, Any]]) -> tuple[list[str | None], float]:
    """What Go's encoding/json would set: keys in any case, the last of several."""
    found: dict[str, str | None] = {}
    timeout = -1.0
    for key, value in pairs:
        lowered = re.sub("[A-Z]", lambda match: match[0].lower(), key)
        if "\0" in key:
            continue
        if lowered == "daemontimeout" and type(value) in (int, float) and value >= 0:
            timeout = float(value)
        usable = isinstance(value, str) and "\0" not in value
        found[lowered] = re.sub("[\ud800-\udfff]", "\ufffd", value) if usable else None
    return [found.get(key.lower()) for key in KEYS], timeout


def scan(scanner: "Scanner", text: str | bytes) -> tuple[list[str | None], float]:
    texts, timeout = scanner.scan(text.encode() if isinstance(text, str) else text)
    return [None if each is None else each.decode() for each in texts], timeout


def spelled(key: str) -> st.SearchStrategy[str]:
    return st.lists(st.booleans(), min_size=len(key), max_size=len(key)).map(
        lambda upper: "".join(letter.upper() if up else letter for letter, up in zip(key, upper, strict=True))
    )


TEXT = st.text(st.characters(), max_size=12) | st.text(
    st.sampled_from('"\\/{}[]:,\n\t\0\ud83d\ude00\ud800\udc00a'), max_size=8
)
NUMBER = st.integers(-5, 10**12) | st.floats(-1e3, 1e6, allow_nan=False)
VALUE = st.recursive(
    TEXT | NUMBER | st.booleans() | st.none(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=6,
)
PAIR = st.tuples(
    st.sampled_from([*KEYS, "daemonTimeout"]).flatmap(spelled) | TEXT,
    TEXT | NUMBER | VALUE,
)


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(pairs=st.lists(PAIR, max_size=6), ascii_only=st.booleans(), space=st.sampled_from(["", " ", "\n\t\r "]))
def test_it_reads_what_json_says(
    scanner: "Scanner", pairs: list[tuple[str, Any]], ascii_only: bool, space: str
) -> None:
    # Pairs of surrogates are one character once they were written in escapes.
    pairs = [(json.loads(json.dumps(key)), json.loads(json.dumps(value))) for key, value in pairs]
    if not ascii_only and re.search("[\ud800-\udfff]", repr_of(pairs)):
        ascii_only = True
    items = f"{space},{space}".join(
        f"{json.dumps(key, ensure_ascii=ascii_only)}{space}:{space}{json.dumps(value, ensure_ascii=ascii_only)}"
        for key, value in pairs
    )
    assert scan(scanner, f"{space}{{{space}{items}{space}}}{space}") == oracle(pairs)


def repr_of(pairs: list[tuple[str, Any]]) -> str:
    return json.dumps(pairs, ensure_ascii=False)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ('{"name":"a"}', "a"),
        ('{"name":"a","NAME":"b"}', "b"),
        ('{"name":"a","NAME":7}', None),
        ('{"name":null}', None),
        ('{"name":""}', ""),
        ('{"name":"\\u0061\\"\\\\\\/\\b\\f\\n\\r\\t"}', 'a"\\/\b\f\n\r\t'),
        ('{"name":"\\ud83d\\ude00"}', "\N{GRINNING FACE}"),
        ('{"name":"\\ud83d"}', "\ufffd"),
        ('{"name":"\\ude00x"}', "\ufffdx"),
        ('{"name":"\\ud83d\\ud83d\\ude00"}', "\ufffd\N{GRINNING FACE}"),
        ('{"name":"\\ud83d\\n"}', "\ufffd\n"),
        ('{"name":"a\\u0000b"}', None),
        ('{"name":"a\\x"}', None),
        ('{"name":"a\\u12"}', None),
        ('{"name":"a\nb"}', None),
        ('{"a":{"name":"inner"},"name":"outer"}', "outer"),
        ('{"a":[{"name":"inner"}],"b":"}","name":"outer"}', "outer"),
        ('{"na\\u006de":"a"}', "a"),
        ('[{"name":"a"}]', None),
        ('"name"', None),
        ("", None),
        ("null", None),
        ("{}", None),
        ("{", None),
        ('{"name"', None),
        ('{"name":', None),
        ('{"name":"a"', None),  # cut off: what is wrong with it, the daemon says
        ('{"name":"a",', "a"),
        ('{"name" "a"}', None),
        ('{name:"a"}', None),
        ('{"x":]]],"name":"a"}', None),
        ('{"x":"unfinished,"name":"a"}', None),
        ('{"name":"a"}{"name":"b"}', "a"),
    ],
)
def test_cases(scanner: "Scanner", text: str, name: str | None) -> None:
    assert scan(scanner, text) == ([None, None, None, name], -1)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [("0", 0), ("1.5", 1.5), ("6e1", 60), ("-1", -1), ('"5"', -1), ("null", -1), ("[1]", -1), ("true", -1)],
)
def test_the_timeout_is_a_number_of_seconds(scanner: "Scanner", value: str, seconds: float) -> None:
    assert scan(scanner, f'{{"daemonTimeout":{value}}}') == (ABSENT, seconds)
    assert scan(scanner, f'{{"DAEMONTIMEOUT":{value},"x":1}}') == (ABSENT, seconds)


def test_depth_costs_nothing(scanner: "Scanner") -> None:
    deep = "[" * 1_000_000 + "]" * 1_000_000
    assert scan(scanner, f'{{"x":{deep},"name":"a"}}')[0][3] == "a"
    assert scan(scanner, '{"x":' + '{"a":' * 500_000) == (ABSENT, -1)


RICH = json.dumps(
    {
        "cniVersion": "1.0.0",
        "name": "n\u00e9\ud83d\ude00\t",
        "daemonSocketDir": "/run/multus/",
        "x": [{"y": ["z", 1.5e3, None, True, {"cniDir": "]"}]}],
        "cniDir": "/var/lib/cni/multus",
        "daemonTimeout": 12.5,
    }
).encode()


def test_every_way_to_cut_it_short_is_survived(scanner: "Scanner") -> None:
    for size in range(len(RICH)):
        scanner.scan(RICH[:size])
        scanner.scan(RICH[size:])


def test_thousands_of_damaged_ones_are_survived(scanner: "Scanner") -> None:
    chance = random.Random(20)
    pieces = [
        b'"',
        b"\\",
        b"\\u",
        b"\\ud800",
        b"{",
        b"}",
        b"[",
        b"]",
        b":",
        b",",
        b"\0",
        b"\xff",
        b"\n",
        b"9" * 400,
        b"1e",
    ]
    for _ in range(5000):
        data = bytearray(RICH)
        for _ in range(chance.randint(1, 6)):
            at = chance.randrange(len(data) + 1)
            data[at : at + chance.choice((0, 1, 1, 4, 30))] = chance.choice(pieces)
        scanner.scan(bytes(data))
    for _ in range(2000):
        scanner.scan(b"{" + bytes(chance.choices(b'"\\u{}[]:, dD089\0\xff', k=chance.randint(0, 40))))
