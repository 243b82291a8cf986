"""The generated CNI configuration: upstream's tables, and where ours is right."""

import json
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from multus.cni.conf import parse_conf
from multus.install.errors import InstallError
from multus.install.generate import Generated, Master, generate, generated_here
from multus.settings import DaemonSettings, parse_daemon

PATH = "/etc/cni/net.d/10-flannel.conf"


def settings(**keys: Any) -> DaemonSettings:
    return parse_daemon(json.dumps(keys).encode(), where="test", cores=1)


def master(**keys: Any) -> Master:
    return Master(network=PATH, conf=parse_conf(json.dumps({"type": "flannel"} | keys).encode(), where="test"))


def content(made: Generated) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(made.data)
    return found


def test_a_single_configuration_of_an_old_version() -> None:
    made = generate(settings(), master(cniVersion="0.3.1", name="cbr0"))
    assert made.name == "00-multus.conf"
    assert made.data.decode() == (
        '{\n    "cniVersion": "0.3.1",\n    "name": "multus-cni-network",\n    "type": "multus",\n'
        '    "clusterNetwork": "/etc/cni/net.d/10-flannel.conf",\n    "daemonSocketDir": "/run/multus/",\n'
        '    "cniDir": "/var/lib/cni/multus"\n}\n'
    )


@pytest.mark.parametrize(
    ("version", "name"),
    [
        ("0.3.0", "00-multus.conf"),
        ("0.3.1", "00-multus.conf"),
        ("0.4.0", "00-multus.conf"),
        ("1.0.0", "00-multus.conflist"),
        ("1.1.0", "00-multus.conflist"),
    ],
)
def test_a_list_from_1_0_0_on(version: str, name: str) -> None:
    made = generate(settings(), master(cniVersion=version))
    assert made.name == name
    conf = parse_conf(made.data, where="test")
    assert (conf.cni_version, conf.is_list) == (version, name.endswith("list"))
    assert [plugin.type for plugin in conf.plugins] == ["multus"]
    assert json.loads(bytes(conf.plugins[0].body["clusterNetwork"])) == PATH


CAPABILITIES = [
    ({"capabilities": {"portMappings": True}}, ["portMappings"]),
    ({"capabilities": {"portMappings": True, "tuning": True}}, ["portMappings", "tuning"]),
    ({"capabilities": {"portMappings": True, "tuning": False}}, ["portMappings"]),
    ({"plugins": [{"type": "a", "capabilities": {"portMappings": True, "tuning": True}}]}, ["portMappings", "tuning"]),
    (
        {
            "plugins": [
                {"type": "a", "capabilities": {"tuning": True}},
                {"type": "b", "capabilities": {"bandwidth": True}},
            ]
        },
        ["bandwidth", "tuning"],
    ),
    (
        {"plugins": [{"type": "a", "capabilities": {"mac": False}}, {"type": "b", "capabilities": {"mac": True}}]},
        ["mac"],
    ),
    ({"plugins": [{"type": "a"}], "capabilities": {"ips": True}}, []),
    ({"capabilities": {"mac": False}}, []),
    ({}, []),
]


@pytest.mark.parametrize(("keys", "expected"), CAPABILITIES)
@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_capabilities_are_the_union_of_true_ones(keys: dict[str, Any], expected: list[str], version: str) -> None:
    made = content(generate(settings(), master(cniVersion=version, **keys)))
    plugin = made["plugins"][0] if "plugins" in made else made
    assert plugin.get("capabilities", {}) == dict.fromkeys(expected, True)
    assert ("capabilities" in plugin) == bool(expected)


def test_the_settings_own_capabilities_count_too() -> None:
    made = generate(settings(capabilities={"mac": True, "ips": False}), master(cniVersion="0.4.0"))
    assert content(made)["capabilities"] == {"mac": True}


VERSIONS = [
    # daemon's, the network's -> the version, or upstream's words
    ("", "0.3.1", "0.3.1"),
    ("0.3.1", "0.3.1", "0.3.1"),
    ("0.3.1", "1.0.0", "0.3.1"),
    ("0.3.1", "", "0.3.1"),
    ("0.4.0", "0.4.0", "0.4.0"),
    ("0.4.0", "1.0.0", "0.4.0"),
    ("1.0.0", "0.4.0", "1.0.0"),
    ("0.4.0", "0.3.1", InstallError("delegate cni version is 0.3.1 while top level cni version is 0.4.0")),
    ("1.1.0", "0.2.0", InstallError("delegate cni version is 0.2.0 while top level cni version is 1.1.0")),
    ("0.4.0", "", InstallError("couldn't get cni version of delegate")),
    ("", "", InstallError("couldn't get cni version of delegate")),
    ("nine", "0.4.0", InstallError("couldn't get top level cni version: 'nine' is not one")),
    ("", "2.0.0", InstallError("delegate cni version is 2.0.0")),
]


@pytest.mark.parametrize(("own", "theirs", "expected"), VERSIONS)
def test_versions_that_go_together(own: str, theirs: str, expected: str | InstallError) -> None:
    keys = {"cniVersion": theirs} if theirs else {}
    if isinstance(expected, str):
        assert content(generate(settings(cniVersion=own), master(**keys)))["cniVersion"] == expected
        return
    with pytest.raises(InstallError) as caught:
        generate(settings(cniVersion=own), master(**keys))
    assert caught.value.message == expected.message
    assert caught.value.hint


@pytest.mark.parametrize("theirs", ["0.3.1", "1.1.0", ""])
def test_a_forced_version_is_not_compared(theirs: str) -> None:
    keys = {"cniVersion": theirs} if theirs else {}
    made = generate(settings(cniVersion="0.4.0", forceCNIVersion=True), master(**keys))
    assert content(made)["cniVersion"] == "0.4.0"


def test_force_without_a_version_is_refused() -> None:
    with pytest.raises(InstallError, match="forceCNIVersion without cniVersion"):
        generate(settings(forceCNIVersion=True), master(cniVersion="0.4.0"))


def test_a_network_with_several_versions_offers_them_to_the_runtime() -> None:
    made = generate(
        settings(),
        master(cniVersion="1.0.0", cniVersions=["0.4.0", "1.0.0", "1.1.0", "9.0.0"], plugins=[{"type": "a"}]),
    )
    assert made.name == "00-multus.conflist"
    assert content(made)["cniVersion"] == "1.0.0"
    assert content(made)["cniVersions"] == ["1.0.0", "1.1.0"]


def test_one_version_of_the_settings_is_the_only_one() -> None:
    made = generate(settings(cniVersion="1.0.0"), master(cniVersion="1.0.0", cniVersions=["1.0.0", "1.1.0"]))
    assert "cniVersions" not in content(made)


@pytest.mark.parametrize(
    ("override", "name", "expected"),
    [
        (False, "mycni-name", "multus-cni-network"),
        (True, "mycni-name", "mycni-name"),
        (False, "", "multus-cni-network"),
    ],
)
def test_the_name(override: bool, name: str, expected: str) -> None:
    made = generate(settings(overrideNetworkName=override, name="ignored"), master(cniVersion="0.4.0", name=name))
    assert content(made)["name"] == expected


def test_no_name_to_take_over() -> None:
    with pytest.raises(InstallError, match="does not feature the network name"):
        generate(settings(overrideNetworkName=True), master(cniVersion="0.4.0"))


def test_keys_of_the_daemon_that_upstream_passes_on() -> None:
    passed = {
        "namespaceIsolation": True,
        "globalNamespaces": "default,infra",
        "logToStderr": False,
        "logLevel": "verbose",
        "logFile": "/var/log/multus.log",
        "logOptions": {"maxAge": 7},
        "binDir": "/opt/other/bin",
        "confDir": "/etc/cni/multus/net.d",
        "readinessindicatorfile": "/run/ready",
        "auxiliaryCNIChainName": "vendor-cni-chain",
    }
    own = {"kubeconfig": "/secret", "defaultNetworks": ["a"], "manifests": "/m", "metricsPort": 9091}
    made = content(generate(settings(**passed, **own), master(cniVersion="0.4.0")))
    assert {key: value for key, value in made.items() if key in passed} == passed
    assert not own.keys() & made.keys()


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, "/run/multus/"),
        ({"socketDir": "/run/other"}, "/run/other"),
        ({"socketDir": "/host/run/multus/", "chrootDir": "/hostroot"}, None),
        ({"socketDir": "/host/run/multus/"}, None),
        ({"socketDir": "/host/run/x/", "daemonSocketDir": "/run/x/"}, "/run/x/"),
        ({"daemonSocketDir": "/" + "d" * 94}, "/" + "d" * 94),
    ],
)
def test_where_the_shim_finds_the_daemon(keys: dict[str, Any], expected: str | None) -> None:
    """In upstream's manifest the daemon's socketDir is a path in its pod, where no shim looks."""
    assert content(generate(settings(**keys), master(cniVersion="0.4.0"))).get("daemonSocketDir") == expected


@pytest.mark.parametrize("directory", ["run/multus", "/" + "d" * 95, "/" + "é" * 48])
def test_a_socket_that_the_shim_could_not_reach(directory: str) -> None:
    with pytest.raises(InstallError, match="daemonSocketDir"):
        generate(settings(daemonSocketDir=directory), master(cniVersion="0.4.0"))


@pytest.mark.parametrize(("kind", "expected"), [("", "multus"), ("multus", "multus"), ("multus-shim", "multus-shim")])
def test_the_shims_name(kind: str, expected: str) -> None:
    made = generate(settings(type=kind), master(cniVersion="0.4.0"))
    assert content(made)["type"] == expected
    assert generated_here(made.data)


def test_no_other_name_for_the_shim() -> None:
    with pytest.raises(InstallError, match='"type" is'):
        generate(settings(type="macvlan"), master(cniVersion="0.4.0"))


def test_a_network_of_the_cluster_needs_no_file() -> None:
    made = content(generate(settings(clusterNetwork="default-net"), Master(network="default-net")))
    assert (made["cniVersion"], made["plugins"][0]["clusterNetwork"]) == ("1.0.0", "default-net")


def test_delegates_of_the_settings_reach_the_runtime_as_written() -> None:
    delegate = b'{"cniVersion": "0.4.0", "type": "bridge", "mtu": 15e2, "capabilities": {"ips": true}}'
    given = parse_daemon(b'{"delegates": [%s]}' % delegate, where="test", cores=1)
    made = generate(given, Master(conf=parse_conf(given.delegates[0], where="test")))
    assert b'"mtu": 15e2' in made.data
    assert content(made)["capabilities"] == {"ips": True}
    assert "clusterNetwork" not in content(made)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b'{"cniVersion":"0.4.0","name":"multus-cni-network","clusterNetwork":"/x/y","type":"multus-shim"}',
        b'{"cniVersion":"0.3.1","name":"m","type":"multus","kubeconfig":"/k","delegates":[{"type":"flannel"}]}',
        b'{"type":"flannel","cniDir":"/x","clusterNetwork":"y"}',
        b'{"name":"m","plugins":[{"type":"multus","cniDir":"/x"}]}',
    ],
)
def test_what_was_not_generated_here(data: bytes) -> None:
    assert not generated_here(data)


@hypothesis.given(
    capabilities=st.dictionaries(st.text(max_size=8), st.booleans(), max_size=5),
    version=st.sampled_from(["0.1.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"]),
    path=st.text(min_size=1, max_size=20),
)
def test_the_same_input_gives_the_same_bytes(capabilities: dict[str, bool], version: str, path: str) -> None:
    conf = {"type": "a", "cniVersion": version, "capabilities": capabilities}
    turned = conf | {"capabilities": dict(reversed(capabilities.items()))}
    made = [
        generate(settings(), Master(network=path, conf=parse_conf(json.dumps(each).encode(), where="test")))
        for each in (conf, turned)
    ]
    assert made[0] == made[1]
    assert generated_here(made[0].data)
