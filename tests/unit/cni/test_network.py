"""Network configurations: the rules for names, versions and types; tests of whole configurations are in test_conf."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.conf import encode_conf
from multus.cni.network import (
    MAX_PLUGINS,
    ConfError,
    check_name,
    check_version,
    parse_conf,
    parse_plugin,
    refuse_recursion,
)
from multus.errors import Fault


@pytest.mark.parametrize("name", ["a", "0", "macvlan-conf", "db_net.1", "A" * 253, "a..b", "a-"])
def test_names(name: str) -> None:
    check_name(name, "network name")
    assert parse_conf(json.dumps({"name": name, "type": "x"}).encode(), where="here").name == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "-a", "_a", "a/b", "../a", "a b", "a\n", "a\0", "é", "a" * 254, "a\u0660", "a:b", "a@b"]
)
def test_names_that_no_file_could_have(name: str) -> None:
    with pytest.raises(ConfError) as caught:
        check_name(name, "network name")
    assert caught.value.message.startswith("network name is ")
    assert len(caught.value.message) < 110
    assert caught.value.message.isprintable()


@pytest.mark.parametrize("version", ["0.1.0", "1.1.0", "1", "1.0", "9999.0.0"])
def test_versions(version: str) -> None:
    check_version(version, "cniVersion")


@pytest.mark.parametrize(
    "version", ["", "v1.0.0", "1.0.0-rc1", "1.0.0.0", "1..0", "1.0.0\n", "10000.0.0", "\u0661.0.0"]
)
def test_what_is_no_version(version: str) -> None:
    with pytest.raises(ConfError, match="cniVersion is "):
        check_version(version, "cniVersion")


@pytest.mark.parametrize("kind", ["bridge", "a b", "x" * 255, "é", "weave-net", "..a"])
def test_types(kind: str) -> None:
    assert parse_plugin(json.dumps({"type": kind}).encode(), where="here").type == kind


@pytest.mark.parametrize(
    "kind", ["/bin/sh", "../evil", "a/b", "a\\b", ".", "..", "a\0", "a\n", "\x7f", "x" * 256, "é" * 128]
)
def test_a_type_is_a_plain_file_name(kind: str) -> None:
    with pytest.raises(ConfError, match="it must be a plain file name"):
        parse_plugin(json.dumps({"type": kind}).encode(), where="here")


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        ('{"_not_type":"x"}', "no 'type' and no 'plugins'", '"_not_type" should perhaps be "type"'),
        ('{"tpye":"x"}', "no 'type' and no 'plugins'", '"tpye" should perhaps be "type"'),
        ('{"plugin":[]}', "no 'type' and no 'plugins'", '"plugin" should perhaps be "plugins"'),
        ('{"Type":null}', "no 'type' and no 'plugins'", '"Type" is null'),
        ('{"name":"n"}', "no 'type' and no 'plugins'", 'a plugin needs "type"; a list of them needs "plugins"'),
        ('{"type":""}', 'a plugin without "type"', "macvlan"),
        ('{"type":7}', '"type": Expected `str`, got `int`', ""),
        ('{"plugins":[]}', '"plugins" is empty', "one plugin at least"),
        ('{"plugins":{}}', '"plugins": Expected `array`, got `object`', ""),
        ('{"plugins":[{"type":"a"},null]}', "plugins[1]: no network configuration", "one JSON object"),
        ('{"plugins":[{"type":"a"},{}]}', 'plugins[1]: a plugin without "type"', "macvlan"),
        ('{"type":"a","capabilities":[]}', '"capabilities": Expected `object`, got `array`', ""),
        ('{"type":"a","capabilities":{"mac":"true"}}', '"capabilities": Expected `bool | null`, got `str`', ""),
        ('{"plugins":[{"type":"a"}],"disableCheck":"yes"}', '"disableCheck" is ', "true or false"),
        ('{"plugins":[{"type":"a"}],"disableGC":1}', '"disableGC" is ', "true or false"),
        ('{"type":"a","cniVersion":"latest"}', '"cniVersion" is ', "such as"),
        ('{"type":"a","cniVersions":["1.0.0","x"]}', '"cniVersions" is ', "such as"),
        ('{"loadOnlyInlinedPlugins":true}', '"loadOnlyInlinedPlugins" is true, but there are no "plugins"', ""),
        ("not json", "no network configuration: not JSON", "quotes and commas"),
        ("", "no network configuration: empty", "one JSON object"),
    ],
)
def test_what_is_wrong_is_said_with_where_and_what_to_do(text: str, message: str, hint: str) -> None:
    with pytest.raises(ConfError) as caught:
        parse_conf(text.encode(), where="NAD default/x")
    assert caught.value.message.startswith("NAD default/x")
    assert message in caught.value.message
    assert hint in caught.value.hint
    assert caught.value.fault is Fault.OPERATOR


def test_plugins_are_bounded() -> None:
    def of(count: int) -> bytes:
        return json.dumps({"name": "n", "plugins": [{"type": "a"}] * count}).encode()

    assert len(parse_conf(of(MAX_PLUGINS), where="here").plugins) == MAX_PLUGINS
    with pytest.raises(ConfError, match="64 at most"):
        parse_conf(of(MAX_PLUGINS + 1), where="here")


def test_recursion_is_found_in_any_place_of_a_list() -> None:
    refuse_recursion(parse_conf(b'{"name":"n","type":"multusd"}', where="here"))
    network = parse_conf(b'{"name":"n","plugins":[{"type":"ptp"},{"TYPE":"multus-shim"}]}', where="here")
    with pytest.raises(ConfError, match='network "n" delegates to "multus-shim"'):
        refuse_recursion(network)


@given(st.text(st.characters(exclude_categories=()), max_size=300))
def test_any_name_is_taken_or_refused(name: str) -> None:
    try:
        check_name(name, "x")
    except ConfError as error:
        assert error.message.isprintable()
    else:
        assert "/" not in name
        assert len(name) < 254


@given(
    st.dictionaries(
        st.sampled_from(["type", "Type", "name", "cniVersion", "plugins", "capabilities", "disableCheck"]),
        st.none() | st.text(max_size=5) | st.integers() | st.booleans() | st.lists(st.just({"type": "a"}), max_size=2),
    )
)
def test_what_is_taken_is_taken_again(text: dict[str, object]) -> None:
    try:
        network = parse_conf(json.dumps(text).encode(), where="here")
    except ConfError as error:
        assert error.message.startswith("here")
        return
    assert network.plugins
    assert parse_conf(encode_conf(network), where="again") == network
