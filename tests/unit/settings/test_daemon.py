"""The daemon's file: upstream's and our keys, what is warned of, and what a reload changes."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus.cni.errors import CNIError
from multus.settings import (
    Changes,
    DaemonSettings,
    LogOptions,
    NodeCertificate,
    SettingsError,
    changes,
    load_daemon,
    net_conf,
    parse_daemon,
)
from multus.settings.daemon import DAEMON_KEYS
from multus.settings.netconf import NET_CONF_KEYS


def parse(text: str | dict[str, Any], **arguments: Any) -> DaemonSettings:
    data = text if isinstance(text, str) else json.dumps(text, separators=(",", ":"))
    return parse_daemon(data.encode(), where="daemon.json", **{"cores": 1, **arguments})


def test_defaults() -> None:
    found = parse("{}")
    assert found == DaemonSettings()
    assert (found.socket_dir, str(found.socket_path)) == ("/run/multus/", "/run/multus/multus.sock")
    assert (found.cni_config_dir, found.multus_autoconfig_dir, found.auto) == (
        "/etc/cni/net.d",
        "/etc/cni/net.d",
        True,
    )
    assert (found.connection_limit, found.metrics_port, found.log_to_stderr) == (None, None, False)
    assert (found.add_timeout, found.delegate_timeout, found.attach_order) == (110.0, 60.0, "concurrent")


# Every key: a value, the field it fills and with what, a value that is refused, and whether it needs a restart.
KEYS: list[tuple[str, str, str, object, str, bool]] = [
    ("chrootDir", '"/hostroot"', "chroot_dir", "/hostroot", "1", True),
    ("socketDir", '"/s"', "socket_dir", "/s", "1", True),
    ("perNodeCertificate", '{"certDir":"/c"}', "per_node_certificate", NodeCertificate(cert_dir="/c"), "true", False),
    ("connectionLimit", "7", "connection_limit", 7, "0", True),
    ("metricsPort", "9091", "metrics_port", 9091, '"9091"', True),
    ("enablePprof", "true", "enable_pprof", True, "1", False),
    ("cniConfigDir", '"/n"', "cni_config_dir", "/n", "[]", True),
    ("multusConfigFile", '"/f"', "multus_config_file", "/f", "true", True),
    ("multusAutoconfigDir", '"/a"', "multus_autoconfig_dir", "/a", "1", True),
    ("multusMasterCNI", '"10-x.conf"', "multus_master_cni", "10-x.conf", "1", True),
    ("forceCNIVersion", "true", "force_cni_version", True, '"true"', True),
    ("overrideNetworkName", "true", "override_network_name", True, "1", True),
    ("daemonSocketDir", '"/d"', "daemon_socket_dir", "/d", "1", True),
    ("manifests", '"/m"', "manifests", "/m", "1", True),
    ("nodeName", '"n1"', "node_name", "n1", "1", True),
    ("attachOrder", '"sequential"', "attach_order", "sequential", '"parallel"', False),
    ("maxConcurrentDelegates", "3", "max_concurrent_delegates", 3, "0", False),
    ("nativeDelegates", '["macvlan"]', "native_delegates", ("macvlan",), '"macvlan"', True),
    ("delegateTimeout", "2.5", "delegate_timeout", 2.5, '"2m"', False),
    ("addTimeout", "30", "add_timeout", 30.0, "0", False),
    ("events", '"all"', "events", "all", '"none"', False),
    ("logFormat", '"json"', "log_format", "json", '"xml"', False),
    ("kubeletDir", '"/k"', "kubelet_dir", "/k", "1", True),
    ("deviceInfoDir", '"/i"', "device_info_dir", "/i", "1", True),
    ("deviceConfig", '"/p"', "device_config", "/p", "1", True),
    ("policies", '"/q"', "policies", "/q", "[]", True),
    ("metricsBind", '"::"', "metrics_bind", "::", "1", True),
    ("sriovPolicies", '[{"spec":{}}]', "sriov_policies", (b'{"spec":{}}',), '["p"]', True),
    ("nodeLabels", '{"a/b":"true"}', "node_labels", {"a/b": "true"}, '{"a/b":true}', True),
    ("name", '"n"', "name", "n", "1", False),
    ("type", '"multus-shim"', "type", "multus-shim", "1", False),
    ("cniVersion", '"0.3.1"', "cni_version", "0.3.1", "1", False),
    ("capabilities", '{"ips":true}', "capabilities", {"ips": True}, "[]", False),
    ("confDir", '"/c"', "conf_dir", "/c", "1", False),
    ("cniDir", '"/v"', "cni_dir", "/v", "1", True),
    ("binDir", '"/b"', "bin_dir", "/b", "1", False),
    ("delegates", '[{"type":"a"}]', "delegates", (b'{"type":"a"}',), "{}", False),
    ("clusterNetwork", '"/net.d"', "cluster_network", "/net.d", "1", False),
    ("defaultNetworks", '["a"]', "default_networks", ("a",), '"a"', False),
    ("kubeconfig", '"/kc"', "kubeconfig", "/kc", "1", True),
    ("logFile", '"/l"', "log_file", "/l", "1", False),
    ("logLevel", '"debug"', "log_level", "debug", "1", False),
    ("logToStderr", "true", "log_to_stderr", True, '"true"', False),
    ("logOptions", '{"maxAge":1}', "log_options", LogOptions(max_age=1), '{"maxAge":-1}', False),
    ("readinessindicatorfile", '"/r"', "readiness_indicator_file", "/r", "1", False),
    ("namespaceIsolation", "true", "namespace_isolation", True, "1", False),
    ("globalNamespaces", '"a, b"', "global_namespaces", ("a", "b"), '["a"]', False),
    ("systemNamespaces", '["a"]', "system_namespaces", ("a",), '"a"', False),
    ("multusNamespace", '"m"', "multus_namespace", "m", "1", False),
    ("auxiliaryCNIChainName", '"v"', "auxiliary_cni_chain_name", "v", "1", False),
    ("retryDeleteOnError", "true", "retry_delete_on_error", True, "1", False),
]
PER_REQUEST = {"runtimeConfig", "prevResult"}


def test_the_table_has_every_key() -> None:
    assert {name for name, *_ in KEYS} | PER_REQUEST == {key.name for key in DAEMON_KEYS.values()}
    assert {field for _, _, field, *_ in KEYS} == set(DaemonSettings.__struct_fields__) - {"overlay", "warnings"}


@pytest.mark.parametrize(("name", "value", "field", "expected", "wrong", "restart"), KEYS)
def test_every_key(name: str, value: str, field: str, expected: object, wrong: str, restart: bool) -> None:
    for spelled in (name, name.upper(), name.lower()):
        found = parse(f'{{"{spelled}":{value}}}')
        assert getattr(found, field) == expected
        assert not any("unknown key" in warning for warning in found.warnings)
        shared = name in {key.name for key in NET_CONF_KEYS.values()}
        assert found.overlay == (((name, value.encode()),) if shared else ())
        followers = {"multusAutoconfigDir"} if name == "cniConfigDir" else set()
        told = changes(parse("{}"), found)
        assert set(told.restart if restart else told.live) == {name} | followers
        assert (told.live if restart else told.restart) == ()
        assert changes(found, found) == Changes()
    assert parse(f'{{"{name}":null}}') == DaemonSettings()
    with pytest.raises(SettingsError) as caught:
        parse(f'{{"{name}":{wrong}}}')
    assert "daemon.json" in caught.value.message or caught.value.hint
    assert name in str(caught.value)


UPSTREAM_SAMPLES = {
    "the reference DaemonSet": """{
        "chrootDir": "/hostroot", "cniVersion": "0.3.1", "logLevel": "verbose", "logToStderr": true,
        "cniConfigDir": "/host/etc/cni/net.d", "multusAutoconfigDir": "/host/etc/cni/net.d",
        "multusConfigFile": "auto", "socketDir": "/host/run/multus/" }""",
    "its documentation": """{
        "chrootDir": "/hostroot", "confDir": "/host/etc/cni/net.d", "logToStderr": true, "logLevel": "verbose",
        "logFile": "/tmp/multus.log", "binDir": "/opt/cni/bin", "cniDir": "/var/lib/cni/multus",
        "socketDir": "/host/run/multus/", "cniVersion": "0.3.1", "cniConfigDir": "/host/etc/cni/net.d",
        "multusConfigFile": "auto", "multusAutoconfigDir": "/host/etc/cni/net.d" }""",
    "a distribution that isolates namespaces": """{
        "cniVersion": "0.3.1", "chrootDir": "/hostroot", "logToStderr": true, "logLevel": "verbose",
        "binDir": "/var/lib/cni/bin", "perNodeCertificate": { "enabled": false,
        "bootstrapKubeconfig": "/var/lib/kubelet/kubeconfig", "certDir": "/etc/cni/multus/certs",
        "certDuration": "24h" }, "cniConfigDir": "/host/etc/cni/net.d", "multusConfigFile": "auto",
        "multusAutoconfigDir": "/host/run/multus/cni/net.d", "namespaceIsolation": true,
        "globalNamespaces": "default,openshift-multus", "daemonSocketDir": "/run/multus/socket",
        "readinessindicatorfile": "/host/run/multus/cni/net.d/10-ovn-kubernetes.conf",
        "socketDir": "/host/run/multus/socket", "auxiliaryCNIChainName": "vendor-cni-chain" }""",
}


@pytest.mark.parametrize("text", UPSTREAM_SAMPLES.values(), ids=UPSTREAM_SAMPLES)
def test_upstream_s_own_files_are_read_without_a_word(text: str) -> None:
    found = parse(text)
    given_keys = json.loads(text)
    assert found.warnings == ()
    assert found.chroot_dir == "/hostroot"
    assert found.socket_dir == given_keys["socketDir"]
    assert dict(found.overlay).keys() == given_keys.keys() & {key.name for key in NET_CONF_KEYS.values()}


def test_the_reference_daemonset_s_file() -> None:
    found = parse(UPSTREAM_SAMPLES["the reference DaemonSet"])
    assert (found.cni_version, found.log_level, found.log_to_stderr, found.auto) == ("0.3.1", "verbose", True, True)
    assert (found.cni_config_dir, found.multus_autoconfig_dir) == ("/host/etc/cni/net.d", "/host/etc/cni/net.d")
    assert str(found.socket_path) == "/host/run/multus/multus.sock"
    assert found.overlay == (("cniVersion", b'"0.3.1"'), ("logLevel", b'"verbose"'), ("logToStderr", b"true"))


@pytest.mark.parametrize(
    ("key", "warning"),
    [
        ('"sockeDir":"x"', 'unknown key "sockeDir" in daemon.json is ignored: did you mean "socketDir"?'),
        ('"log_level":"x"', 'unknown key "log_level" in daemon.json is ignored: did you mean "logLevel"?'),
        ('"maxDelegates":1', 'unknown key "maxDelegates" in daemon.json is ignored: did you mean "delegates"?'),
        ('"cniConf":"/x"', 'unknown key "cniConf" in daemon.json is ignored: did you mean "confDir"?'),
        ('"xyzzy":null', 'unknown key "xyzzy" in daemon.json is ignored'),
        ('"":1', 'unknown key "" in daemon.json is ignored'),
        (
            '"logOptions":{"maxSizes":1}',
            'unknown key "maxSizes" in logOptions in daemon.json is ignored: did you mean "maxSize"?',
        ),
        (
            '"perNodeCertificate":{"dir":"/x"}',
            'unknown key "dir" in perNodeCertificate in daemon.json is ignored: did you mean "certDir"?',
        ),
        ('"runtimeConfig":{}', "runtimeConfig in daemon.json is not used: it belongs to one request, not to the node"),
        ('"prevResult":{}', "prevResult in daemon.json is not used: it belongs to one request, not to the node"),
        ('"enablePprof":true', "enablePprof in daemon.json is not used: it is a facility of Go programs"),
    ],
)
def test_warnings(key: str, warning: str) -> None:
    assert parse(f"{{{key}}}").warnings == (warning,)


def test_certificates_that_nobody_requests_are_told_of() -> None:
    (warning,) = parse({"perNodeCertificate": {"enabled": True, "certDuration": None}}).warnings
    assert warning.startswith("perNodeCertificate in daemon.json is not used")
    assert parse({"perNodeCertificate": {"enabled": False}}).warnings == ()


def test_what_belongs_to_a_request_is_given_to_none() -> None:
    found = parse('{"clusterNetwork":"x","runtimeConfig":{"mac":"m"},"prevResult":{}}')
    assert found.overlay == (("clusterNetwork", b'"x"'),)
    assert net_conf(found, b"{}").runtime_config == {}


@pytest.mark.parametrize("limit", [0, -1])
def test_no_limit_of_connections_below_one(limit: int) -> None:
    with pytest.raises(SettingsError) as caught:
        parse({"connectionLimit": limit})
    assert caught.value.message == f"connection limit must be greater than 0, got {limit}"


@pytest.mark.parametrize(
    ("name", "field", "default"),
    [
        ("socketDir", "socket_dir", "/run/multus/"),
        ("cniConfigDir", "cni_config_dir", "/etc/cni/net.d"),
        ("multusAutoconfigDir", "multus_autoconfig_dir", "/etc/cni/net.d"),
        ("multusConfigFile", "multus_config_file", "auto"),
        ("cniDir", "cni_dir", "/var/lib/cni/multus"),
        ("binDir", "bin_dir", "/opt/cni/bin"),
        ("kubeletDir", "kubelet_dir", "/var/lib/kubelet"),
        ("deviceInfoDir", "device_info_dir", "/var/run/k8s.cni.cncf.io/devinfo"),
        ("multusNamespace", "multus_namespace", "kube-system"),
    ],
)
def test_empty_is_absent_as_in_go(name: str, field: str, default: str) -> None:
    assert getattr(parse({name: ""}), field) == default


def test_the_default_conf_is_looked_for_where_ours_is_put() -> None:
    assert parse('{"cniConfigDir":"/n"}').multus_autoconfig_dir == "/n"
    assert parse('{"cniConfigDir":"/n","multusAutoconfigDir":""}').multus_autoconfig_dir == "/n"
    assert parse('{"cniConfigDir":"/n","multusAutoconfigDir":"/a"}').multus_autoconfig_dir == "/a"
    assert not parse('{"multusConfigFile":"/etc/multus.conf"}').auto


def test_the_node_s_name_is_the_file_s_else_the_environment_s() -> None:
    assert parse("{}", node_name="env").node_name == "env"
    assert parse('{"nodeName":"file"}', node_name="env").node_name == "file"
    assert parse('{"nodeName":""}', node_name="env").node_name == "env"


@pytest.mark.parametrize(("cores", "expected"), [(1, 8), (2, 16), (3, 24), (4, 32), (64, 32)])
def test_delegates_at_a_time_come_from_the_cores(cores: int, expected: int) -> None:
    assert parse("{}", cores=cores).max_concurrent_delegates == expected
    assert parse('{"maxConcurrentDelegates":100}', cores=cores).max_concurrent_delegates == 100


def test_the_cores_are_asked_of_the_kernel() -> None:
    assert 8 <= parse("{}", cores=None).max_concurrent_delegates <= 32


def test_load(tmp_path: Path) -> None:
    path = tmp_path / "daemon-config.json"
    path.write_text('{"clusterNetwork":"x","xyzzy":1}')
    found = load_daemon(path, node_name="n", cores=1)
    assert (found.cluster_network, found.node_name) == ("x", "n")
    assert found.warnings == (f'unknown key "xyzzy" in {path} is ignored',)
    path.write_text('{"logLevel":5}')
    with pytest.raises(SettingsError, match=f"logLevel in {path}: expected a string, got a number: 5"):
        load_daemon(path)


def test_load_what_cannot_be_read(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(b" " * (1024 * 1024 + 1))
    for path in (tmp_path / "none", tmp_path, large):
        with pytest.raises(SettingsError, match=f"^cannot read the daemon's configuration: .*{path}"):
            load_daemon(path)
    (tmp_path / "bad").write_bytes(b'{"x":"\xff"}')
    with pytest.raises(SettingsError, match="is not valid JSON"):
        load_daemon(tmp_path / "bad")


def test_the_daemon_s_keys_go_over_each_request_s() -> None:
    found = parse('{"NamespaceIsolation":true,"clusterNetwork":"mine","logFile":null,"chrootDir":"/h","nodeName":"n"}')
    net = net_conf(found, b'{"namespaceIsolation":false,"logFile":"/theirs","clusterNetwork":"theirs"}')
    assert (net.namespace_isolation, net.cluster_network, net.log_file) == (True, "mine", "/theirs")


def test_the_readiness_file_counts_only_where_the_conf_is_not_generated() -> None:
    conf = b'{"clusterNetwork":"x","readinessindicatorfile":"/theirs"}'
    assert net_conf(parse("{}"), conf).readiness_indicator_file == ""
    given_path = parse('{"multusConfigFile":"/f","readinessindicatorfile":"/mine"}')
    assert net_conf(given_path, conf).readiness_indicator_file == "/mine"


@pytest.mark.parametrize(
    ("old", "new", "live", "restart"),
    [
        ("{}", "{}", (), ()),
        ('{"logLevel":"debug"}', '{ "LOGLEVEL" : "debug" }', (), ()),
        ('{"logLevel":"debug"}', '{"logLevel":"error"}', ("logLevel",), ()),
        ('{"logOptions":{"maxAge":5}}', '{"logOptions":{ "maxAge" : 5 }}', (), ()),
        # Written, it goes over every request's, even as the default.
        ("{}", '{"namespaceIsolation":false}', ("namespaceIsolation",), ()),
        ('{"globalNamespaces":"default"}', "{}", ("globalNamespaces",), ()),
        ('{"chrootDir":""}', "{}", (), ()),
        ('{"socketDir":"/a"}', '{"socketDir":"/b","addTimeout":5}', ("addTimeout",), ("socketDir",)),
        # In the order of the table, not of the file.
        ('{"events":"all","binDir":"/b"}', '{"logFile":"/l"}', ("binDir", "logFile", "events"), ()),
        ('{"xyzzy":1}', "{}", (), ()),
    ],
)
def test_what_a_reload_changes(old: str, new: str, live: tuple[str, ...], restart: tuple[str, ...]) -> None:
    assert changes(parse(old), parse(new)) == Changes(live=live, restart=restart)


def test_a_reload_without_changes_gives_every_request_the_same() -> None:
    """Whatever `changes` passes over may make no difference to a request."""
    conf = b'{"namespaceIsolation":true,"globalNamespaces":"a","clusterNetwork":"x"}'
    for text in ("{}", '{"namespaceIsolation":false}', '{"globalNamespaces":"default"}', '{"xyzzy":1}'):
        before, after = parse("{}"), parse(text)
        assert (changes(before, after) == Changes()) == (net_conf(before, conf) == net_conf(after, conf))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
NAMES = st.sampled_from([name for name, *_ in KEYS])
VALUES = st.one_of(*(st.just(json.loads(value)) for _, value, *_ in KEYS), JSON)
FILES = st.dictionaries(NAMES | NAMES.map(str.lower) | st.text(max_size=8), VALUES, max_size=6)


@settings(deadline=None)
@given(FILES.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=60), FILES)
def test_whatever_it_is_it_is_settings_or_a_settings_error(data: bytes, conf: dict[str, Any]) -> None:
    try:
        found = parse_daemon(data, where="fuzz", cores=2)
    except SettingsError as error:
        assert error.message
        return
    assert changes(found, found) == Changes()
    assert parse_daemon(data, where="fuzz", cores=2) == found
    try:
        net_conf(found, json.dumps(conf).encode())
    except (SettingsError, CNIError) as error:
        assert error.message


@settings(deadline=None)
@given(st.sets(st.sampled_from(range(len(KEYS))), max_size=6))
def test_right_values_are_taken_together(chosen: set[int]) -> None:
    keys = [KEYS[index] for index in chosen]
    found = parse("{" + ",".join(f'"{name}":{value}' for name, value, *_ in keys) + "}")
    for _, _, field, expected, *_ in keys:
        assert getattr(found, field) == expected
