"""The CNI configuration of a request under the daemon's own: every key, its default, and what is refused."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code
from multus.settings import LogOptions, NetConf, SettingsError
from multus.settings.netconf import NET_CONF_KEYS, overlaid

Overlay = tuple[tuple[str, bytes], ...]


def read(conf: str | dict[str, Any], overlay: Overlay = (), *, drop_readiness: bool = False) -> NetConf:
    text = conf if isinstance(conf, str) else json.dumps(conf, separators=(",", ":"))
    return overlaid(overlay, text.encode(), drop_readiness=drop_readiness)


def test_defaults() -> None:
    assert read('{"clusterNetwork":"x"}') == NetConf(cluster_network="x")
    net = NetConf()
    assert (net.conf_dir, net.cni_dir, net.bin_dir) == (
        "/etc/cni/multus/net.d",
        "/var/lib/cni/multus",
        "/opt/cni/bin",
    )
    assert (net.log_to_stderr, net.log_options) == (
        True,
        LogOptions(max_age=5, max_size=100, max_backups=5, compress=True),
    )
    assert (net.global_namespaces, net.system_namespaces) == (("default",), ("kube-system",))
    assert net.multus_namespace == "kube-system"
    assert not (net.namespace_isolation or net.retry_delete_on_error)


# Every key: a value, the field it fills and with what, and a value of a wrong type.
KEYS: list[tuple[str, str, str, object, str]] = [
    ("name", '"n"', "name", "n", "1"),
    ("type", '"multus"', "type", "multus", "[]"),
    ("cniVersion", '"0.4.0"', "cni_version", "0.4.0", "0.4"),
    ("capabilities", '{"portMappings":true,"x":null}', "capabilities", {"portMappings": True, "x": False}, '["mac"]'),
    ("confDir", '"/c"', "conf_dir", "/c", "1"),
    ("cniDir", '"/d"', "cni_dir", "/d", "true"),
    ("binDir", '"/b"', "bin_dir", "/b", "{}"),
    ("delegates", '[{"type": "a"}]', "delegates", (b'{"type": "a"}',), '{"type":"a"}'),
    ("clusterNetwork", '"default/x"', "cluster_network", "default/x", "1"),
    ("defaultNetworks", '["a","b"]', "default_networks", ("a", "b"), '"a,b"'),
    ("kubeconfig", '"/k"', "kubeconfig", "/k", "1"),
    ("logFile", '"/l"', "log_file", "/l", "1"),
    ("logLevel", '"debug"', "log_level", "debug", "4"),
    ("logToStderr", "false", "log_to_stderr", False, '"false"'),
    (
        "logOptions",
        '{"maxage":1,"maxSize":2,"MAXBACKUPS":3,"compress":false}',
        "log_options",
        LogOptions(max_age=1, max_size=2, max_backups=3, compress=False),
        '{"maxAge":"5d"}',
    ),
    ("runtimeConfig", '{"mac":"m"}', "runtime_config", {"mac": msgspec.Raw(b'"m"')}, '"mac"'),
    ("readinessindicatorfile", '"/r"', "readiness_indicator_file", "/r", "1"),
    ("namespaceIsolation", "true", "namespace_isolation", True, '"true"'),
    ("globalNamespaces", '" foo,bar ,default"', "global_namespaces", ("foo", "bar", "default"), '["foo"]'),
    ("systemNamespaces", '["a"]', "system_namespaces", ("a",), '"a"'),
    ("multusNamespace", '"m"', "multus_namespace", "m", "1"),
    ("auxiliaryCNIChainName", '"vendor"', "auxiliary_cni_chain_name", "vendor", "1"),
    ("retryDeleteOnError", "true", "retry_delete_on_error", True, "1"),
    ("prevResult", '{"cniVersion": "0.4.0"}', "prev_result", b'{"cniVersion": "0.4.0"}', "[]"),
]


def test_the_table_has_every_key() -> None:
    assert {name for name, *_ in KEYS} == {key.name for key in NET_CONF_KEYS.values()}
    assert {field for _, _, field, _, _ in KEYS} == set(NetConf.__struct_fields__) - {"answer_version", "warnings"}


@pytest.mark.parametrize(("name", "value", "field", "expected", "wrong"), KEYS)
def test_every_key(name: str, value: str, field: str, expected: object, wrong: str) -> None:
    base = "" if name in ("clusterNetwork", "delegates") else '"clusterNetwork":"x",'
    for spelled in (name, name.upper(), name.lower()):
        net = read(f'{{{base}"{spelled}":{value}}}')
        assert getattr(net, field) == expected
        assert net.warnings == ()
    absent = read(f'{{"clusterNetwork":"x","{name}":null}}' if base else '{"clusterNetwork":"x"}')
    assert absent == NetConf(cluster_network="x")
    with pytest.raises(SettingsError) as caught:
        read(f'{{"clusterNetwork":"x","{name}":{wrong}}}')
    assert name in caught.value.message
    assert "in the CNI configuration: expected " in caught.value.message


@pytest.mark.parametrize(
    ("name", "value", "field", "default"),
    [
        ("confDir", '""', "conf_dir", "/etc/cni/multus/net.d"),
        ("cniDir", '""', "cni_dir", "/var/lib/cni/multus"),
        ("binDir", '""', "bin_dir", "/opt/cni/bin"),
        ("multusNamespace", '""', "multus_namespace", "kube-system"),
        ("systemNamespaces", "[]", "system_namespaces", ("kube-system",)),
        ("globalNamespaces", '""', "global_namespaces", ("default",)),
        ("globalNamespaces", '" , "', "global_namespaces", ("default",)),
    ],
)
def test_empty_is_absent(name: str, value: str, field: str, default: object) -> None:
    assert getattr(read(f'{{"clusterNetwork":"x","{name}":{value}}}'), field) == default


def test_the_walk_through_s_configuration() -> None:
    conf = """{"name":"multus-cni-network","type":"multus","kubeconfig":"/etc/cni/net.d/multus.d/multus.kubeconfig",
        "capabilities":{"portMappings":true},"delegates":[{"cniVersion":"0.3.1","name":"default-cni-network",
        "plugins":[{"type":"flannel","name":"flannel.1","delegate":{"isDefaultGateway":true,"hairpinMode":true}},
        {"type":"portmap","capabilities":{"portMappings":true},"externalSetMarkChain":"KUBE-MARK-MASQ"}]}]}"""
    net = read(conf)
    assert (net.name, net.type, net.capabilities) == ("multus-cni-network", "multus", {"portMappings": True})
    assert len(net.delegates) == 1
    assert json.loads(net.delegates[0])["plugins"][0]["type"] == "flannel"
    assert (net.cni_version, net.answer_version, net.warnings) == ("", "", ())


@pytest.mark.parametrize(
    "conf",
    [
        "{}",
        '{"kubeconfig":"/etc/kubernetes/node.conf"}',
        '{"clusterNetwork":"","delegates":[]}',
        '{"clusterNetwork":null,"delegates":null}',
        '{"defaultNetworks":["a"]}',
    ],
)
def test_there_must_be_a_network(conf: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read(conf)
    assert caught.value.message == "LoadNetConf: at least one delegate/clusterNetwork must be specified"
    assert "clusterNetwork" in caught.value.hint


def test_delegates_beside_a_cluster_network_are_no_error() -> None:
    net = read('{"clusterNetwork":"x","delegates":[{"type":"a"}]}')
    assert (net.cluster_network, net.delegates) == ("x", (b'{"type":"a"}',))


@pytest.mark.parametrize("conf", ["", "{", "[]", "null", '"x"', '{"a":1,}', '{"x":"\udcff"}'])
def test_what_is_no_json_object(conf: str) -> None:
    with pytest.raises(CNIError) as caught:
        overlaid((("clusterNetwork", b'"x"'),), conf.encode(errors="surrogateescape"), drop_readiness=False)
    assert caught.value.code == Code.DECODING_FAILURE
    assert caught.value.message.startswith("LoadNetConf: failed to load netconf: the CNI configuration")


def test_the_daemon_s_keys_replace_the_request_s() -> None:
    overlay = (
        ("globalNamespaces", b'"default,istio"'),
        ("logLevel", b'"verbose"'),
        ("namespaceIsolation", b"true"),
        ("clusterNetwork", b'"mine"'),
    )
    net = read(
        '{"logLevel":"debug","GLOBALNAMESPACES":"x","namespaceisolation":false,"clusterNetwork":"theirs",'
        '"logFile":"/l","readinessindicatorfile":"/r"}',
        overlay,
    )
    assert (net.log_level, net.global_namespaces, net.namespace_isolation) == ("verbose", ("default", "istio"), True)
    assert (net.cluster_network, net.log_file, net.readiness_indicator_file) == ("mine", "/l", "/r")


def test_the_readiness_file_is_dropped_where_the_conf_waits_for_it_itself() -> None:
    overlay = (("readinessindicatorfile", b'"/mine"'), ("clusterNetwork", b'"x"'))
    conf = '{"readinessIndicatorFile":"/theirs"}'
    assert read(conf, overlay).readiness_indicator_file == "/mine"
    assert read(conf, overlay, drop_readiness=True).readiness_indicator_file == ""


def test_the_answer_is_in_the_runtime_s_version_whatever_is_put_over_it() -> None:
    overlay = (("cniVersion", b'"1.0.0"'), ("clusterNetwork", b'"x"'))
    for conf, expected in (
        ('{"cniVersion":"0.3.1"}', "0.3.1"),
        ('{"CNIVERSION":"0.3.1"}', "0.3.1"),
        ("{}", ""),
        ('{"cniVersion":null}', ""),
    ):
        net = read(conf, overlay)
        assert (net.cni_version, net.answer_version) == ("1.0.0", expected)
    assert read('{"cniVersion":"0.4.0","clusterNetwork":"x"}').answer_version == "0.4.0"


def test_a_previous_result_is_in_the_runtime_s_version() -> None:
    overlay = (("cniVersion", b'"0.2.0"'), ("clusterNetwork", b'"x"'))
    broken = '{"ips":[{"address":"no address"}]}'  # as 0.2.0, "ips" would be no key at all
    with pytest.raises(CNIError) as caught:
        read(f'{{"cniVersion":"1.0.0","prevResult":{broken}}}', overlay)
    assert caught.value.message.startswith("LoadNetConf: could not parse prevResult: prevResult: no CNI result")
    assert caught.value.code == Code.DECODING_FAILURE
    good = '{"ips":[{"address":"10.0.0.1/24"}]}'
    assert read(f'{{"cniVersion":"1.0.0","prevResult":{good}}}', overlay).prev_result == good.encode()


def test_a_previous_result_in_an_unknown_version() -> None:
    with pytest.raises(CNIError, match="could not parse prevResult") as caught:
        read('{"clusterNetwork":"x","prevResult":{"cniVersion":"9.0.0"}}')
    assert caught.value.code == Code.INCOMPATIBLE_VERSION


def test_runtime_config_by_its_right_names() -> None:
    net = read(
        '{"clusterNetwork":"x","runtimeConfig":{"PORTMAPPINGS":[{"hostPort":8080}],"Bandwidth":{"ingressRate":1},'
        '"ips":["10.0.0.1/24"],"infinibandguid":"g","deviceid":"d","cniDeviceInfoFile":"f","mac":null,"aliases":["a"]}}'
    )
    assert net.runtime_config == {
        "portMappings": msgspec.Raw(b'[{"hostPort":8080}]'),
        "bandwidth": msgspec.Raw(b'{"ingressRate":1}'),
        "ips": msgspec.Raw(b'["10.0.0.1/24"]'),
        "infinibandGUID": msgspec.Raw(b'"g"'),
        "deviceID": msgspec.Raw(b'"d"'),
        "CNIDeviceInfoFile": msgspec.Raw(b'"f"'),
        "aliases": msgspec.Raw(b'["a"]'),  # not ours, but some plugin's
    }


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("portMappings", "{}"),
        ("bandwidth", "[]"),
        ("ips", '"10.0.0.1/24"'),
        ("mac", "[]"),
        ("infinibandGUID", "1"),
        ("deviceID", "{}"),
        ("CNIDeviceInfoFile", "true"),
    ],
)
def test_runtime_config_of_a_wrong_type(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} of runtimeConfig in the CNI configuration: expected a"):
        read(f'{{"clusterNetwork":"x","runtimeConfig":{{"{name}":{value}}}}}')


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("cniConf", "confDir"),  # what upstream's own generator writes
        ("allowTryDeleteOnErr", "retryDeleteOnError"),  # what its documentation says
        ("clusterNetworks", "clusterNetwork"),
        ("readinessIndicatorFiles", "readinessindicatorfile"),
        ("namespaceIsolated", "namespaceIsolation"),
        ("ipam", ""),
        ("daemonSocketDir", ""),
        ("DNS", ""),
        ("defaultnetworkwaitseconds", ""),
        ("vendor.example/x", ""),
        ("", ""),
    ],
)
def test_only_what_looks_like_a_slip_is_worth_a_word(name: str, meant: str) -> None:
    net = read({"clusterNetwork": "x", name: {"any": 1}})
    expected = f'unknown key "{name}" in the CNI configuration is ignored: did you mean "{meant}"?'
    assert net.warnings == ((expected,) if meant else ())


def test_a_conf_is_read_once_but_never_for_other_settings() -> None:
    conf = '{"clusterNetwork":"theirs"}'
    assert read(conf) is read(conf)
    assert read(conf, (("clusterNetwork", b'"mine"'),)).cluster_network == "mine"
    assert read(conf).cluster_network == "theirs"
    large = json.dumps({"clusterNetwork": "x", "padding": "y" * 70_000})
    assert read(large) == read(large) == NetConf(cluster_network="x")
    assert read(large) is not read(large)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([name for name, *_ in KEYS])
VALUES = st.one_of(*(st.just(json.loads(value)) for _, value, *_ in KEYS), JSON)
CONFS = st.dictionaries(NAMES | NAMES.map(str.upper) | st.text(max_size=8), VALUES, max_size=6).map(
    lambda conf: json.dumps({"clusterNetwork": "x", **conf}).encode()
)
OVERLAYS = st.dictionaries(NAMES, VALUES, max_size=3).map(
    lambda keys: tuple((name, json.dumps(value).encode()) for name, value in keys.items())
)


@settings(deadline=None)
@given(CONFS | st.binary(max_size=60) | JSON.map(lambda value: json.dumps(value).encode()), OVERLAYS, st.booleans())
def test_whatever_it_is_it_is_a_conf_or_one_of_two_errors(conf: bytes, overlay: Overlay, drop: bool) -> None:
    try:
        net = overlaid(overlay, conf, drop_readiness=drop)
    except CNIError as error:
        assert error.code in (Code.DECODING_FAILURE, Code.INCOMPATIBLE_VERSION)
    except SettingsError as error:
        assert error.message
    else:
        assert net.cluster_network or net.delegates
