"""From a NetworkAttachmentDefinition to a configuration."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.conf import ConfError, NetworkConf, encode_conf, parse_conf
from multus.kube.objects import NAD
from multus.networks.errors import NetworkError
from multus.networks.nad import resolve_nad


def nad(config: str, name: str = "net1") -> NAD:
    return NAD(namespace="test", name=name, config=config)


def resolved(config: str, on_disk: NetworkConf | None = None) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(encode_conf(resolve_nad(nad(config), from_directory=on_disk)))
    return decoded


ON_DISK = parse_conf(b'{"name":"net1","type":"from-disk","cniVersion":"0.3.1"}', where="10-net1.conf")


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ('{"type":"mynet"}', {"type": "mynet", "name": "net1"}),
        ('{"type":"mynet","name":""}', {"type": "mynet", "name": "net1"}),
        ('{"type":"mynet","name":null}', {"type": "mynet", "name": "net1"}),
        ('{"type":"mynet","name":"own"}', {"type": "mynet", "name": "own"}),
        ('{"type":"mynet","Name":"own"}', {"type": "mynet", "Name": "own"}),
        ('{"type":"x","cniVersion":"1.0.0","n":1e400}', None),
        (
            '{"cniVersion":"1.0.0","plugins":[{"type":"a","name":"inner"},{"type":"b"}]}',
            {"cniVersion": "1.0.0", "name": "net1", "plugins": [{"type": "a", "name": "inner"}, {"type": "b"}]},
        ),
        ('{"plugins":[{"type":"a"}]}', {"name": "net1", "plugins": [{"type": "a"}]}),  # no version stays none
        ('\n {"type":"mynet"} \n', {"type": "mynet", "name": "net1"}),
    ],
)
def test_configuration_in_the_object(config: str, expected: dict[str, Any] | None) -> None:
    assert resolve_nad(nad(config), from_directory=ON_DISK) == resolve_nad(nad(config))  # the object comes first
    if expected is None:
        assert b"1e400" in encode_conf(resolve_nad(nad(config)))  # values travel untouched
    else:
        assert resolved(config) == expected


@pytest.mark.parametrize("config", ["", "  \n"])
def test_configuration_on_disk(config: str) -> None:
    assert resolve_nad(nad(config), from_directory=ON_DISK) == ON_DISK
    with pytest.raises(NetworkError) as caught:
        resolve_nad(nad(config))
    assert "NetworkAttachmentDefinition test/net1 has no spec.config" in str(caught.value)
    assert 'no file of the conf directory has the name "net1"' in str(caught.value)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ("macvlan", "not JSON"),
        ("[]", "object"),
        ("null", "object"),
        ('{"type":""}', '"type"'),
        ("{}", "no 'type'"),
        ('{"plugins":[]}', '"plugins" is empty'),  # upstream panics
        ('{"plugins":null}', "no 'type'"),
        ('{"plugins":[{"type":"a"},{}]}', "plugins[1]"),  # upstream looks at the first only
        ('{"type":"x","name":"a/b"}', '"name"'),
        ('{"type":"multus","delegates":[{"type":"x"}]}', "this program itself"),
        ('{"plugins":[{"type":"x"},{"type":"multus-shim"}]}', "this program itself"),
    ],
)
def test_configuration_that_cannot_be_used(config: str, words: str) -> None:
    with pytest.raises(ConfError) as caught:
        resolve_nad(nad(config), from_directory=ON_DISK)
    assert words in str(caught.value)
    assert "net1" in str(caught.value)  # of which network


def test_recursion_from_disk_is_refused() -> None:
    recursive = parse_conf(b'{"name":"net1","type":"multus"}', where="10-net1.conf")
    with pytest.raises(ConfError, match="this program itself"):
        resolve_nad(nad(""), from_directory=recursive)


def test_text_that_is_none_is_refused() -> None:
    with pytest.raises(NetworkError, match=r"test/net1: spec\.config is not UTF-8"):
        resolve_nad(nad('{"type":"\ud800"}'))


KEYS = st.sampled_from(["name", "type", "plugins", "cniVersion", "cniVersions", "disableCheck", "capabilities", "args"])
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10) | st.sampled_from(["multus", "1.0.0", "bridge"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=10,
)


@settings(deadline=None)
@given(st.text(max_size=40) | st.dictionaries(KEYS, VALUES, max_size=6).map(json.dumps), st.text(max_size=10))
def test_whatever_is_written_is_resolved_or_refused(config: str, name: str) -> None:
    try:
        conf = resolve_nad(nad(config, name))
    except (NetworkError, ConfError) as error:
        assert str(error)
        return
    assert conf.name
    assert conf.plugins
    assert parse_conf(encode_conf(conf), where="again") == conf
