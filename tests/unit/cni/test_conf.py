"""Network configurations: what is read, what is refused, and what a plugin gets on stdin."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.conf import (
    ConfError,
    NetworkConf,
    encode_conf,
    masters,
    parse_conf,
    parse_plugin,
    plugin_conf,
    refuse_recursion,
    with_chained,
    with_cni_args,
    with_cni_version,
    with_device,
    with_name,
)
from multus.cni.network import MAX_CONF, MAX_PLUGINS

WALK_THROUGH = b"""{
  "cniVersion": "0.3.0", "type": "macvlan", "master": "eth0", "mode": "bridge",
  "ipam": {"type": "host-local", "subnet": "192.168.1.0/24", "rangeStart": "192.168.1.200",
           "rangeEnd": "192.168.1.216", "routes": [{"dst": "0.0.0.0/0"}], "gateway": "192.168.1.1"}}"""


def conf(text: str | bytes | dict[str, Any]) -> NetworkConf:
    data = json.dumps(text).encode() if isinstance(text, dict) else text.encode() if isinstance(text, str) else text
    return parse_conf(data, where="here")


def stdin(network: NetworkConf, index: int = 0, **arguments: Any) -> dict[str, Any]:
    given_arguments: dict[str, Any] = {"prev_result": None, "runtime": {}, **arguments}
    decoded: dict[str, Any] = json.loads(plugin_conf(network, network.plugins[index], **given_arguments))
    return decoded


def test_single_conf() -> None:
    network = conf(WALK_THROUGH)
    assert (network.name, network.cni_version, network.is_list) == ("", "0.3.0", False)
    assert [plugin.type for plugin in network.plugins] == ["macvlan"]
    assert list(network.plugins[0].body) == ["cniVersion", "type", "master", "mode", "ipam"]


def test_list() -> None:
    network = conf(
        """{"cniVersion":"1.0.0","name":"db-net_1.x","disableCheck":true,"disableGC":"True",
        "loadOnlyInlinedPlugins":"false","plugins":[{"type":"bridge"},
        {"type":"portmap","capabilities":{"portMappings":true,"ips":false,"mac":null}}]}"""
    )
    assert (network.name, network.cni_version, network.is_list) == ("db-net_1.x", "1.0.0", True)
    assert (network.disable_check, network.disable_gc, network.load_only_inlined_plugins) == (True, True, False)
    assert network.plugins[1].capabilities == {"portMappings": True, "ips": False, "mac": False}


@pytest.mark.parametrize(
    ("version", "versions", "chosen"),
    [
        (None, None, ""),
        ("0.3.1", None, "0.3.1"),
        ("1.0.0", [], "1.0.0"),
        ("0.4.0", ["0.3.1", "1.1.0", "1.0.0"], "1.1.0"),
        ("1.1.0", ["0.3.1"], "1.1.0"),
        ("2.0.0", ["0.3.1", "1.0.0"], "1.0.0"),  # newer than we know: the list exists so that we need not
        ("0.3.1", ["1.9.0", "2.0.0"], "0.3.1"),
        (None, ["9.0.0"], ""),
        ("9.0.0", None, "9.0.0"),  # for the plugin to refuse
        (None, ["0.10.0", "0.4.0"], "0.4.0"),
    ],
)
def test_highest_version_that_both_know(version: str | None, versions: list[str] | None, chosen: str) -> None:
    given_keys = {"cniVersion": version, "cniVersions": versions}
    body = {key: value for key, value in given_keys.items() if value is not None}
    assert conf({**body, "name": "n", "plugins": [{"type": "x"}]}).cni_version == chosen
    single = conf({**body, "type": "x"})
    assert single.cni_version == chosen
    assert stdin(single)["cniVersion"] == chosen


@pytest.mark.parametrize(
    "text",
    [
        '{"NAME":"n","CniVersion":"0.4.0","Plugins":[{"Type":"bridge","CAPABILITIES":{"mac":true}}],"disablecheck":true}',
        '{"Name":"other","name":"n","cniversion":"0.4.0","plugins":[{"TYPE":"x","type":"bridge",'
        '"capabilities":{"mac":true}}],"DisableCheck":true}',
        '{"name":"n","cniVer\u017fion":"0.4.0","plugin\u017f":[{"type":"bridge","capabilities":{"mac":true}}],'
        '"disableChec\u212a":true}',
    ],
)
def test_keys_match_as_in_go_the_exact_spelling_first(text: str) -> None:
    network = conf(text)
    assert (network.name, network.cni_version, network.disable_check) == ("n", "0.4.0", True)
    assert (network.plugins[0].type, network.plugins[0].capabilities) == ("bridge", {"mac": True})


def test_null_is_absent_and_the_last_duplicate_wins() -> None:
    network = conf('{"name":null,"cniVersion":null,"plugins":null,"type":"a","type":"b","capabilities":null}')
    assert network == conf('{"name":null,"cniVersion":null,"plugins":null,"type":"b","capabilities":null}')
    assert (network.plugins[0].type, network.is_list) == ("b", False)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"", "empty"),
        (b"  \n", "empty"),
        (b"macvlan-conf", "not JSON"),
        (b"null", "object"),
        (b"[]", "object"),
        (b'"macvlan"', "object"),
        (b"{", "not JSON"),
        (b'{"type":"bridge"} x', "not JSON"),
        (b'{"type":"bridge",}', "not JSON"),
        (b'{"type":"br\xffidge"}', "not UTF-8"),
        (b'{"type":"bridge","x":"\xff"}', "not UTF-8"),
        (b'{"type":"bridge","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
        (b'{"type":"bridge","x":' + b"[" * 100_000, "nested too deeply"),
        (b"{}", "no 'type'; perhaps this is supposed to be a .conflist"),
        (b'{"_not_type":"bridge"}', '"_not_type" should perhaps be "type"'),
        (b'{"name":"n","plugin":[{"type":"x"}]}', '"plugin" should perhaps be "plugins"'),
        (b'{"name":"n","pluigns":[{"type":"x"}]}', '"pluigns" should perhaps be "plugins"'),
        (b'{"name":"n","type":null}', '"type" is null'),
        (b'{"name":"n","loadOnlyInlinedPlugins":true}', '"loadOnlyInlinedPlugins" is true'),
        (b'{"type":""}', '"type"'),
        (b'{"type":5}', '"type"'),
        (b'{"type":"../../bin/sh"}', "plain file name"),
        (b'{"type":"/bin/sh"}', "plain file name"),
        (b'{"type":"a\\\\b"}', "plain file name"),
        (b'{"type":".."}', "plain file name"),
        (b'{"type":"a\\u0000b"}', "plain file name"),
        (b'{"type":"a\\nb"}', "plain file name"),
        (b'{"type":"' + b"a" * 256 + b'"}', "plain file name"),
        (b'{"type":"x","name":"-n"}', '"name"'),
        (b'{"type":"x","name":"a/b"}', '"name"'),
        (b'{"type":"x","name":"a b"}', '"name"'),
        (b'{"type":"x","name":"ab\\n"}', '"name"'),
        (b'{"type":"x","name":"' + b"n" * 254 + b'"}', '"name"'),
        (b'{"type":"x","name":1}', '"name"'),
        (b'{"type":"x","cniVersion":1.0}', '"cniVersion"'),
        (b'{"type":"x","cniVersion":"v1.0.0"}', '"cniVersion"'),
        (b'{"type":"x","cniVersion":"' + b"9" * 5000 + b'"}', '"cniVersion"'),
        (b'{"type":"x","cniVersions":"1.0.0"}', '"cniVersions"'),
        (b'{"type":"x","cniVersions":["one"]}', '"cniVersions"'),
        (b'{"type":"x","cniVersions":[null]}', '"cniVersions"'),
        (b'{"type":"x","capabilities":["mac"]}', '"capabilities"'),
        (b'{"type":"x","capabilities":{"mac":"yes"}}', '"capabilities"'),
        (b'{"type":"x","disableCheck":1}', '"disableCheck"'),
        (b'{"type":"x","disableGC":"yes"}', '"disableGC"'),
        (b'{"type":"x","disableGC":' + b"9" * 5000 + b"}", '"disableGC"'),
        (b'{"plugins":{}}', '"plugins"'),
        (b'{"plugins":"bridge"}', '"plugins"'),
        (b'{"plugins":[]}', '"plugins" is empty'),  # upstream: index out of range, a panic
        (b'{"plugins":[null]}', "plugins[0]"),
        (b'{"plugins":["bridge"]}', "plugins[0]"),
        (b'{"plugins":[{"type":"bridge"},{}]}', "plugins[1]"),  # upstream looks at the first only
        (b'{"plugins":[{"type":"bridge"},{"type":["x"]}]}', "plugins[1]"),
        (b'{"plugins":[{"type":"a/b"}]}', "plugins[0]"),
        (b'{"plugins":[' + b'{"type":"x"},' * MAX_PLUGINS + b'{"type":"x"}]}', "64 at most"),
        (b'{"type":"x","y":"' + b"y" * MAX_CONF + b'"}', "bytes"),
        (b"{" + b",".join(b'"k%d":1' % number for number in range(2000)) + b',"type":"x"}', "members"),
    ],
    ids=lambda value: repr(value[:50]),
)
def test_refused(text: bytes, words: str) -> None:
    with pytest.raises(ConfError) as caught:
        parse_conf(text, where="NetworkAttachmentDefinition default/macvlan-conf")
    said = str(caught.value).replace("' and no 'plugins'", "'")
    assert said.startswith("NetworkAttachmentDefinition default/macvlan-conf")
    assert words in said
    assert len(said) < 500


def test_values_reach_the_plugin_byte_for_byte() -> None:
    network = conf(
        b'{"name":"n","type":"x","z":1e400,"a":%s,"Unicode":"\\u00e9","o":{"b":1,  "a":[ ]}}' % (b"9" * 5000)
    )
    expected = b'{"name":"n","type":"x","z":1e400,"a":%s,"Unicode":"\\u00e9","o":{"b":1,  "a":[ ]},"cniVersion":""}'
    assert plugin_conf(network, network.plugins[0], prev_result=None, runtime={}) == expected % (b"9" * 5000)


def test_a_list_may_have_its_plugins_elsewhere() -> None:
    text = b'{"cniVersion":"1.1.0","name":"kindnet"}'
    network = parse_conf(text, where="here", plugins_elsewhere=True)
    assert (network.plugins, network.is_list) == ((), True)
    extended = with_chained(network, [parse_plugin(b'{"type":"tuning"}', where="there")])
    assert [plugin.type for plugin in extended.plugins] == ["tuning"]
    with pytest.raises(ConfError):
        parse_conf(text, where="here")
    with pytest.raises(ConfError):
        parse_conf(text[:-1] + b',"loadOnlyInlinedPlugins":true}', where="here", plugins_elsewhere=True)
    with pytest.raises(ConfError, match="there"):
        parse_plugin(b'{"name":"x"}', where="there")


def test_chained_plugins_are_appended_unless_only_inlined_ones_count() -> None:
    more = [parse_plugin(b'{"type":"tuning"}', where="there")]
    single = with_chained(conf('{"name":"n","cniVersion":"0.4.0","type":"ptp"}'), more)
    assert [plugin.type for plugin in single.plugins] == ["ptp", "tuning"]
    assert single.is_list
    assert parse_conf(encode_conf(single), where="again") == single
    only = conf('{"name":"n","loadOnlyInlinedPlugins":"TRUE","plugins":[{"type":"ptp"}]}')
    assert with_chained(only, more) is only


@pytest.mark.parametrize("kind", ["multus", "multus-shim"])
def test_delegating_to_ourselves_is_refused(kind: str) -> None:
    refuse_recursion(conf('{"name":"n","plugins":[{"type":"bridge"},{"type":"multus-like"}]}'))
    with pytest.raises(ConfError, match="this program itself"):
        refuse_recursion(conf({"name": "n", "plugins": [{"type": "bridge"}, {"type": kind}]}))


def test_name_is_given_to_a_conf_without_one() -> None:
    network = with_name(conf('{"type":"mynet","Name":""}'), "macvlan-conf")
    assert network.name == "macvlan-conf"
    assert stdin(network) == {"type": "mynet", "name": "macvlan-conf", "cniVersion": ""}
    assert parse_conf(encode_conf(network), where="again") == network
    with pytest.raises(ConfError):
        with_name(network, "../x")


@pytest.mark.parametrize(
    "form", ['{"cniVersions":["1.1.0"],"type":"x"}', '{"cniVersions":["1.1.0"],"plugins":[{"type":"x"}]}']
)
def test_version_is_set(form: str) -> None:
    network = with_cni_version(conf(form), "0.4.0")
    assert (network.cni_version, network.cni_versions) == ("0.4.0", ())
    assert parse_conf(encode_conf(network), where="again") == network
    assert stdin(network)["cniVersion"] == "0.4.0"
    with pytest.raises(ConfError):
        with_cni_version(network, "latest")


def test_device_goes_into_a_conf_and_into_every_plugin_of_a_list() -> None:
    device = {"deviceID": "0000:00:00.1", "pciBusID": "0000:00:00.1"}
    single = with_device(conf('{"type":"sriov","DEVICEID":"forged","vlan":5}'), "0000:00:00.1")
    assert json.loads(encode_conf(single)) == {"type": "sriov", "vlan": 5, **device}
    listed = with_device(conf('{"name":"n","plugins":[{"type":"sriov"},{"type":"tuning"}]}'), "0000:00:00.1")
    assert json.loads(encode_conf(listed))["plugins"] == [{"type": "sriov", **device}, {"type": "tuning", **device}]


def test_cni_args_are_merged_over_those_of_the_conf() -> None:
    text = '{"name":"n","type":"x","args":{"labels":{"k": 1},"cni":{"args0":"val0","args1":"val1"}}}'
    merged = with_cni_args(conf(text), {"args1": "val1a", "args2": {"deep": [1]}})
    assert json.loads(encode_conf(merged))["args"] == {
        "labels": {"k": 1},
        "cni": {"args0": "val0", "args1": "val1a", "args2": {"deep": [1]}},
    }
    assert b'{"k": 1}' in encode_conf(merged)
    listed = with_cni_args(conf('{"plugins":[{"type":"a"},{"type":"b","args":null}]}'), {"k": msgspec.Raw(b"1.50")})
    assert encode_conf(listed).count(b'"args":{"cni":{"k":1.50}}') == 2
    assert with_cni_args(listed, {}) is listed


@pytest.mark.parametrize("args", ["[]", "1", '{"cni":"x"}', '{"cni":[]}'])
def test_cni_args_of_a_wrong_type_are_refused(args: str) -> None:
    with pytest.raises(ConfError, match="args"):
        with_cni_args(conf('{"type":"x","args":%s}' % args), {"k": "v"})


def test_values_that_json_cannot_say_are_refused() -> None:
    network = conf('{"type":"x","capabilities":{"mac":true}}')
    with pytest.raises(ConfError):
        with_cni_args(network, {"k": object()})
    with pytest.raises(ConfError):
        stdin(network, runtime={"mac": "\ud800"})


def test_stdin_of_a_plugin() -> None:
    network = conf(
        """{"name":"net","cniVersion":"0.4.0","plugins":[
        {"type":"macvlan","name":"own","CNIVersion":"0.1.0","ipam":{}},
        {"type":"tuning","capabilities":{"mac":true,"ips":false,"absent":true},"runtimeConfig":{"keep":1,"mac":"old"}}]}"""
    )
    runtime = {"mac": "02:00:00:00:00:01", "ips": ["10.0.0.1/24"], "bandwidth": {}}
    assert stdin(network, 0, runtime=runtime) == {"type": "macvlan", "name": "net", "ipam": {}, "cniVersion": "0.4.0"}
    assert stdin(network, 1, runtime=runtime, prev_result=b'{"cniVersion":"0.4.0","ips":[]}') == {
        "type": "tuning",
        "capabilities": {"mac": True, "ips": False, "absent": True},
        "runtimeConfig": {"keep": 1, "mac": "02:00:00:00:00:01"},
        "name": "net",
        "cniVersion": "0.4.0",
        "prevResult": {"cniVersion": "0.4.0", "ips": []},
    }
    assert stdin(network, 1)["runtimeConfig"] == {"keep": 1, "mac": "old"}


def test_no_other_spelling_of_an_injected_key_survives() -> None:
    """A Go plugin takes the last of them, so a network could shed the name and the device it is given."""
    network = conf('{"type":"x","NAME":"a","name":"b","Name":"c","cniversion":"9","runtimeconfig":{"mac":"forged"}}')
    granting = conf('{"name":"n","type":"x","capabilities":{"mac":true},"runtimeCONFIG":{"mac":"forged"}}')
    assert stdin(network) == {"type": "x", "name": "b", "cniVersion": "9", "runtimeconfig": {"mac": "forged"}}
    assert stdin(granting, runtime={"mac": "true"}) == {
        "name": "n",
        "type": "x",
        "capabilities": {"mac": True},
        "runtimeConfig": {"mac": "true"},
        "cniVersion": "",
    }


def test_a_reserved_key_of_a_wrong_type_is_replaced() -> None:
    network = conf('{"name":"n","type":"x","capabilities":{"mac":true},"runtimeConfig":[1]}')
    assert stdin(network, runtime={"mac": "m"})["runtimeConfig"] == {"mac": "m"}


def test_gc_gets_both_spellings_of_the_valid_attachments() -> None:
    valid = [{"containerID": "c", "ifname": "eth0"}, {"containerID": "c", "ifname": "net1"}]
    extra = {"cni.dev/valid-attachments": valid, "cni.dev/attachments": valid}
    assert stdin(conf('{"name":"n","type":"x"}'), extra=extra) == {
        "name": "n",
        "type": "x",
        "cniVersion": "",
        **extra,
    }


@pytest.mark.parametrize(
    ("plugins", "names"),
    [
        ('{"type":"macvlan","master":"net1"}', ("net1",)),
        ('{"type":"ipvlan","master":"net1","linkInContainer":true},{"type":"vlan","master":"eth1"}', ("net1", "eth1")),
        ('{"type":"bond","links":[{"name":"net1"},{"name":"net2"},{"name":"net1"}]}', ("net1", "net2")),
        ('{"type":"bond","links":[null,5,{"name":1},{},{"name":"net2"}]}', ("net2",)),
        ('{"type":"x","link":"net3"}', ("net3",)),
        ('{"type":"macvlan","master":""}', ()),
        ('{"type":"macvlan","master":["net1"]}', ()),
        ('{"type":"bond","links":{"name":"net1"}}', ()),
        ('{"type":"bridge","bridge":"cni0"},{"type":"host-device","device":"eth1"},{"type":"tuning"}', ()),
    ],
)
def test_masters(plugins: str, names: tuple[str, ...]) -> None:
    assert masters(conf('{"name":"n","plugins":[%s]}' % plugins)) == names


NAMES = st.from_regex(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]{0,12}", fullmatch=True)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
OTHERS = st.dictionaries(st.text(max_size=8), JSON, max_size=4)
PLUGINS = st.builds(
    lambda others, kind, granted: {**others, "type": kind, "capabilities": granted},
    OTHERS,
    NAMES.filter(lambda name: name not in (".", "..")),
    st.dictionaries(st.sampled_from(["mac", "ips", "portMappings"]), st.booleans()),
)
VERSIONS = st.sampled_from(["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0", "3.0.0"])
TOP = st.fixed_dictionaries(
    {},
    optional={
        "name": NAMES,
        "cniVersion": VERSIONS,
        "cniVersions": st.lists(VERSIONS, max_size=3),
        "disableCheck": st.booleans() | st.sampled_from(["true", "FALSE"]),
        "disableGC": st.booleans(),
        "loadOnlyInlinedPlugins": st.booleans(),
    },
)
NETWORKS = st.builds(lambda top, plugins: {**top, "plugins": plugins}, TOP, st.lists(PLUGINS, min_size=1, max_size=3))
SINGLES = st.builds(lambda top, plugin: {**plugin, **top}, TOP, PLUGINS)


def accepted(text: dict[str, Any]) -> NetworkConf | None:
    """Random keys sometimes spell a known key with a value of another type, which is refused."""
    try:
        return conf(text)
    except ConfError:
        return None


@settings(max_examples=80, deadline=None)
@given(NETWORKS | SINGLES, NAMES)
def test_encoding_loses_nothing(text: dict[str, Any], name: str) -> None:
    network = accepted(text)
    if network is None:
        return
    changed = with_device(with_cni_version(with_name(network, name), "1.0.0"), "0000:00:00.1")
    for each in (network, changed):
        assert parse_conf(encode_conf(each), where="again") == each


@settings(max_examples=80, deadline=None)
@given(NETWORKS | SINGLES)
def test_a_plugin_gets_its_keys_in_their_order(text: dict[str, Any]) -> None:
    network = accepted(text)
    if network is None:
        return
    for plugin in network.plugins:
        sent = json.loads(plugin_conf(network, plugin, prev_result=None, runtime={"mac": "m"}))
        injected = {"name", "cniversion", "runtimeconfig"}
        kept = [key for key in plugin.body if key.lower().replace("\u017f", "s") not in injected]
        assert [key for key in sent if key in kept] == kept
        assert all(sent[key] == json.loads(bytes(plugin.body[key])) for key in kept)
        assert (sent["name"], sent["cniVersion"]) == (network.name, network.cni_version)


@settings(max_examples=200, deadline=None)
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(str.encode) | JSON.map(lambda value: json.dumps(value).encode())
)
def test_whatever_it_is_it_is_a_conf_or_a_conf_error(data: bytes) -> None:
    try:
        network = parse_conf(data, where="fuzz")
    except ConfError:
        return
    masters(network)
    refuse_recursion(network)
    assert parse_conf(encode_conf(network), where="again") == network


@settings(max_examples=100, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["type", "name", "cniVersion", "cniVersions", "plugins", "capabilities", "disableGC", "Args"]),
        JSON | st.just("x") | st.lists(OTHERS | PLUGINS, max_size=2),
    )
)
def test_known_keys_with_any_value_give_a_conf_or_a_conf_error(text: dict[str, Any]) -> None:
    network = accepted(text)
    if network is None:
        return
    masters(network)
    for plugin in network.plugins:
        plugin_conf(network, plugin, prev_result=b"{}", runtime={"mac": "m"})
    try:
        with_cni_args(network, {"k": "v"})
    except ConfError:
        return
