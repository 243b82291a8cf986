"""What an ADD will do: names, devices, arguments, order, and everything that is refused before anything is touched."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from multus import devinfo
from multus.cni.conf import parse_conf
from multus.cni.request import PodRef
from multus.networks.devices import DeviceShare
from multus.networks.gateways import GatewayDecision
from multus.networks.selection import Selection, parse_default_network, parse_selections
from multus.plan import Origin, Plan, PlanError, Wanted, make_plan
from multus.sandbox import Attachment

VF = "intel.com/sriov"
A, B, C = (f"0000:03:02.{number}" for number in range(3))
POD = PodRef(namespace="test", name="vfw", uid="u-1", infra_container_id="")
STRIPPED = GatewayDecision(keep_v4=False, keep_v6=False)


def default(body: dict[str, Any] | None = None, **keys: Any) -> Wanted:
    given_keys = {"origin": Origin.DEFAULT, "network": "cbr0", "found": "10-cbr0.conf", **keys}
    body = {"type": "bridge", "name": "cbr0", **(body or {})}
    return Wanted(conf=parse_conf(json.dumps(body).encode(), where="here"), **given_keys)


def net(annotation: str, body: dict[str, Any] | None = None, *, resource: str = "", **keys: Any) -> Wanted:
    """A network of the pod's annotation, with a NAD behind it."""
    (selection,) = parse_selections(annotation, "test")
    body = body or {"type": "macvlan"}
    return Wanted(
        **{
            "origin": Origin.POD,
            "network": f"{selection.namespace}/{selection.name}",
            "conf": parse_conf(json.dumps({"name": selection.name, **body}).encode(), where="here"),
            "found": "NAD",
            "resource": resource,
            "selection": selection,
            **keys,
        }
    )


def element(**keys: Any) -> str:
    """An annotation with one network in it; an underscore in a keyword stands for a hyphen."""
    return json.dumps([{"name": "net1", **{key.replace("_", "-"): value for key, value in keys.items()}}])


def auxiliary() -> Wanted:
    conf = parse_conf(b'{"name":"aux","cniVersion":"1.0.0","plugins":[{"type":"passthru"}]}', where="here")
    return Wanted(origin=Origin.AUXILIARY, network="aux", conf=conf)


def plan(*wanted: Wanted, devices: dict[str, Any] | None = None, **keys: Any) -> Plan:
    given_keys: dict[str, Any] = {"container_id": "c1", "ifname": "eth0", "pod": POD, **keys}
    return make_plan(wanted, devices=DeviceShare(devices or {}), **given_keys)


def attachments(*wanted: Wanted, **keys: Any) -> list[Attachment]:
    made = plan(*wanted, **keys)
    made.refuse()
    return [item.attachment for item in made.attachments]


def second(annotation: str, body: dict[str, Any] | None = None, **keys: Any) -> Attachment:
    """What becomes of one network beside the default one."""
    resource = keys.pop("resource", "")
    return attachments(default(), net(annotation, body, resource=resource), **keys)[1]


def body_of(attachment: Attachment) -> dict[str, Any]:
    decoded: dict[str, Any] = json.loads(attachment.conf)
    return decoded


# Names and positions


def test_positions_and_interface_names() -> None:
    made = attachments(
        default(),
        default({"name": "a"}, origin=Origin.CLUSTER_WIDE, network="kube-system/a"),
        net("net1"),
        net("blue/net2@ens5"),
        net("net1"),
        auxiliary(),
    )
    assert [(each.position, each.network, each.ifname, each.default) for each in made] == [
        (0, "cbr0", "eth0", True),
        (1, "kube-system/a", "net1", False),
        (2, "test/net1", "net2", False),
        (3, "blue/net2", "ens5", False),
        (4, "test/net1", "net4", False),
        (5, "aux", "net5", False),
    ]


def test_interface_of_the_default_network() -> None:
    selection = parse_default_network("net1@ens1", "kube-system")
    override = default(origin=Origin.OVERRIDE, network="kube-system/net1", selection=selection)
    assert [each.ifname for each in attachments(override, ifname="eth0")] == ["ens1"]
    unnamed = msgspec.structs.replace(override, selection=parse_default_network("net1", "kube-system"))
    assert [each.ifname for each in attachments(unnamed, ifname="eth7")] == ["eth7"]


@pytest.mark.parametrize(
    ("first", "other", "words"),
    [
        ("net1@ens1", "net2@ens1", "network 'test/net2' (networks annotation) would be interface 'ens1', which"),
        ("net1@eth0", "net2", "would be interface 'eth0', which 'cbr0' (cluster default) already is"),
        ("net1@net2", "net2", "network 'test/net2' (networks annotation) would be interface 'net2'"),
        ("net1", "net2@net1", "network 'test/net2' (networks annotation) would be interface 'net1'"),
    ],
)
def test_two_networks_cannot_be_one_interface(first: str, other: str, words: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan(default(), net(first), net(other)).refuse()
    assert words in str(caught.value)


# What is refused


def test_every_refusal_is_told_at_once_in_order() -> None:
    made = plan(
        default(),
        net("gone", conf=None, refusal="cannot find a network-attachment-definition (gone) in namespace (test)"),
        net(element(default_route=["10.0.0.1"])),
        net("net3@eth0"),
        net(element(name="net4", default_route=["10.0.0.2"])),
        net("net5", resource=VF),
        net(element(name="net6", cni_args={"x": 1}), {"type": "macvlan", "args": "a=b"}),
    )
    with pytest.raises(PlanError) as caught:
        made.refuse()
    text = str(caught.value)
    told = [
        "network 'test/gone' (networks annotation): cannot find a network-attachment-definition (gone)",
        "network 'test/net3' (networks annotation) would be interface 'eth0'",
        "multus does not support ECMP for default-route",
        "network 'test/net5' (networks annotation): network 'test/net5' needs a device",
        "network 'test/net6' (networks annotation): plugin \"macvlan\"",
    ]
    assert [text.index(words) for words in told] == sorted(text.index(words) for words in told)
    assert len(made.refusals) == len(told)
    # The others keep the positions, and with them the names, that they have in the annotation.
    assert [each.attachment.ifname for each in made.attachments] == ["eth0", "net2", "eth0", "net4"]


def test_a_network_is_never_dropped_without_a_word() -> None:
    nothing = Wanted(origin=Origin.POD, network="test/net1")
    with pytest.raises(PlanError, match=r"test/net1.*there is no configuration"):
        plan(default(), nothing).refuse()
    nameless = Wanted(origin=Origin.DELEGATE, network="", conf=parse_conf(b'{"type":"x"}', where="here"), found="it")
    made = plan(default(), nameless)
    assert [each.attachment.position for each in made.attachments] == [0]
    with pytest.raises(PlanError, match="has no name"):  # upstream attaches the first, then fails and undoes it
        made.refuse()


def test_a_plan_without_refusals_passes() -> None:
    plan(default(), net("net1")).refuse()
    assert plan(default()).refusals == ()


# Devices


def test_devices_go_to_networks_in_their_order() -> None:
    made = attachments(
        default(resource=VF),
        net("net1", resource=VF),
        net("net2"),
        net("net1", resource=VF),
        devices={VF: [("first", [C, B]), ("second", [A])]},
    )
    # The default network's device comes out of the same share; upstream gives it to the next network again.
    assert [each.device_id for each in made] == [B, C, "", A]
    assert [each.resource for each in made] == [VF, VF, "", VF]


def test_who_asks_for_a_device_chooses_first() -> None:
    made = attachments(
        default(),
        net("net1", resource=VF),
        net(element(container="first"), resource=VF),
        net(element(deviceID=A), resource=VF),
        devices={VF: [("first", [A, B]), ("second", [C])]},
    )
    assert [each.device_id for each in made] == ["", C, B, A]


def test_device_is_told_to_every_plugin() -> None:
    single = second("net1", {"type": "sriov"}, resource=VF, devices={VF: [("app", [A])]})
    assert body_of(single) == {"name": "net1", "type": "sriov", "deviceID": A, "pciBusID": A}
    listed = second(
        "net1", {"plugins": [{"type": "sriov"}, {"type": "tuning"}]}, resource=VF, devices={VF: [("x", [A])]}
    )
    assert body_of(listed)["plugins"] == [
        {"type": "sriov", "deviceID": A, "pciBusID": A},
        {"type": "tuning", "deviceID": A, "pciBusID": A},
    ]


def test_device_in_the_capability_arguments() -> None:
    given_device = second("net1", resource=VF, devices={VF: [("app", [A])]}, device_info_dir="/run/devinfo")
    name = devinfo.cni_file_name("test/net1", "c1", "net1")
    assert given_device.runtime == {"deviceID": A, "CNIDeviceInfoFile": f"/run/devinfo/cni/{name}"}
    assert given_device.device_info == name
    usual = second("net1", resource=VF, devices={VF: [("app", [A])]})
    assert usual.runtime["CNIDeviceInfoFile"] == f"/var/run/k8s.cni.cncf.io/devinfo/cni/{name}"


def test_device_of_the_selection_alone_is_not_in_the_conf() -> None:
    asked = second(element(deviceID="0000:af:00.1"))
    assert asked.runtime["deviceID"] == "0000:af:00.1"
    assert asked.runtime["CNIDeviceInfoFile"].endswith("/cni/" + asked.device_info)
    assert (asked.device_id, asked.resource) == ("", "")
    assert body_of(asked) == {"name": "net1", "type": "macvlan"}
    plain = second("net1")
    assert (plain.runtime, plain.device_info) == ({}, "")


def test_default_network_with_a_device() -> None:
    (first,) = attachments(default(resource=VF), devices={VF: [("app", [A])]})
    assert (first.device_id, body_of(first)["deviceID"], first.runtime) == (A, A, {})
    assert first.device_info == devinfo.cni_file_name("cbr0", "c1", "eth0")
    override = default(selection=Selection(namespace="kube-system", name="net1", device_id=A))
    (ignored,) = attachments(override)
    assert (ignored.device_id, ignored.device_info, ignored.runtime) == ("", "", {})


def test_device_that_is_not_there_is_refused_but_not_on_del() -> None:
    networks = (default(), net("net1", resource=VF), net("net2"))
    refused = plan(*networks)
    assert [each.attachment.ifname for each in refused.attachments] == ["eth0", "net2"]
    with pytest.raises(PlanError, match="the pod was given 0 of that resource"):
        refused.refuse()
    made = attachments(*networks, tolerant=True)
    assert [(each.ifname, each.device_id, each.resource) for each in made] == [
        ("eth0", "", ""),
        ("net1", "", VF),
        ("net2", "", ""),
    ]
    assert "deviceID" not in body_of(made[1])


def test_a_network_that_is_not_there_takes_no_device() -> None:
    gone = net("gone", conf=None, refusal="gone", resource=VF)
    made = plan(default(), gone, net("net1", resource=VF), devices={VF: [("app", [A])]})
    assert [each.attachment.device_id for each in made.attachments] == ["", A]
    assert len(made.refusals) == 1


# Arguments


def test_cni_args_are_merged_over_the_confs_own() -> None:
    body = {"type": "x", "args": {"cni": {"args0": "val0", "args1": "val1"}, "other": 1}}
    merged = second(element(cni_args={"args1": "val1a", "args2": [1.50]}), body)
    assert body_of(merged)["args"] == {"cni": {"args0": "val0", "args1": "val1a", "args2": [1.5]}, "other": 1}
    listed = second(element(cni_args={"a": 1}), {"plugins": [{"type": "x"}, {"type": "y", "args": {"cni": {"a": 0}}}]})
    assert [plugin["args"] for plugin in body_of(listed)["plugins"]] == [{"cni": {"a": 1}}, {"cni": {"a": 1}}]


def test_environment_of_a_delegate() -> None:
    assert second("net1").args == (
        ("IgnoreUnknown", "true"),
        ("K8S_POD_NAMESPACE", "test"),
        ("K8S_POD_NAME", "vfw"),
        ("K8S_POD_INFRA_CONTAINER_ID", ""),
        ("K8S_POD_UID", "u-1"),
    )


def test_mac_and_ips_of_a_selection_are_in_the_environment_of_the_default_network_too() -> None:
    text = element(mac="02:00:5e:00:53:01", ips=["10.0.0.7/24", "2001:db8::7"])
    override = default(origin=Origin.OVERRIDE, selection=parse_default_network(text, "kube-system"))
    made = attachments(override, net(element(mac="02:00:5e:00:53:02", ips=["10.1.0.7"])))
    assert [dict(each.args)["MAC"] for each in made] == ["02:00:5e:00:53:01", "02:00:5e:00:53:02"]
    assert [dict(each.args)["IP"] for each in made] == ["10.0.0.7/24,2001:db8::7", "10.1.0.7"]


def test_the_runtimes_own_arguments() -> None:
    """Its address and MAC are for eth0: upstream hands them to every network."""
    pairs = (
        ("IgnoreUnknown", "1"),
        ("K8S_POD_NAME", "x"),
        ("MAC", "02:00:5e:00:53:01"),
        ("IP", "10.0.0.7"),
        ("K", "a=b"),
    )
    first, other = attachments(default(), net("net1"), runtime_args=pairs)
    ours = ["IgnoreUnknown", "K8S_POD_NAMESPACE", "K8S_POD_NAME", "K8S_POD_INFRA_CONTAINER_ID", "K8S_POD_UID"]
    assert [key for key, _ in first.args] == [*ours, "MAC", "IP", "K"]
    assert [key for key, _ in other.args] == [*ours, "K"]
    assert dict(first.args)["K8S_POD_NAME"] == "vfw"
    assert dict(first.args)["K"] == "a=b"


def test_without_a_pod() -> None:
    assert attachments(default(), pod=None)[0].args == (("IgnoreUnknown", "true"),)


ASKED = element(
    mac="02:00:5e:00:53:01",
    ips=["10.0.0.7"],
    infiniband_guid="c2:11:22:33:44:55:66:77",
    bandwidth={"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "egressBurst": 1600},
    portMappings=[{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
)


def test_capability_arguments_of_a_selection() -> None:
    asked = {
        "mac": "02:00:5e:00:53:01",
        "ips": ["10.0.0.7"],
        "infinibandGUID": "c2:11:22:33:44:55:66:77",
        "bandwidth": {"ingressRate": 2048, "ingressBurst": 1600, "egressRate": 4096, "egressBurst": 1600},
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    }
    override = default(origin=Origin.OVERRIDE, selection=parse_default_network(ASKED, "kube-system"))
    runtime = {"portMappings": msgspec.Raw(b'[{"hostPort":1}]'), "dns": {"servers": ["10.0.0.10"]}}
    first, other, plain = attachments(override, net(ASKED), net("net2"), runtime=runtime)
    assert first.runtime == runtime  # the default network has what the runtime gave, and no more
    assert other.runtime == {**runtime, **asked}
    assert plain.runtime == runtime
    assert second(ASKED).runtime == asked


def test_capability_arguments_that_are_one_interfaces_only() -> None:
    runtime = {"ips": ["10.0.0.7"], "mac": "02:00:5e:00:53:01", "infinibandGUID": "x", "deviceID": A, "bandwidth": {}}
    first, other, own = attachments(default(), net("net1"), net(element(ips=["10.0.0.8"])), runtime=runtime)
    assert first.runtime == runtime
    assert other.runtime == {"bandwidth": {}}
    assert own.runtime == {"bandwidth": {}, "ips": ["10.0.0.8"]}
    first.runtime["bandwidth2"] = {}
    assert "bandwidth2" not in runtime  # attachments share nothing


def test_an_attachment_survives_the_journal() -> None:
    attachment = second(ASKED, resource=VF, devices={VF: [("app", [A])]})
    assert msgspec.json.decode(msgspec.json.encode(attachment), type=Attachment) == attachment


# Default routes


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ([None, None], [GatewayDecision()] * 3),
        ([None, []], [STRIPPED, STRIPPED, GatewayDecision()]),
        (
            [None, ["10.0.0.1"]],
            [STRIPPED, STRIPPED, GatewayDecision(keep_v4=False, keep_v6=False, gateways_v4=("10.0.0.1",))],
        ),
    ],
)
def test_default_routes(asked: list[list[str] | None], expected: list[GatewayDecision]) -> None:
    networks = [net(element(default_route=route)) for route in asked]
    made = plan(default(), *networks, auxiliary())
    made.refuse()
    assert [each.gateways for each in made.attachments[:-1]] == expected
    assert made.attachments[-1].gateways == GatewayDecision()  # it has no interface whose routes could go


def test_default_route_of_the_default_network() -> None:
    override = default(selection=parse_default_network(element(default_route=["10.0.0.1"]), "kube-system"))
    made = plan(override, net("net1"))
    assert made.attachments[0].gateways.gateways_v4 == ("10.0.0.1",)
    assert made.attachments[1].gateways == STRIPPED


# Order


def after(*wanted: Wanted, **keys: Any) -> list[tuple[int, ...]]:
    return [each.after for each in attachments(*wanted, **keys)]


def test_all_wait_for_the_default_network_and_the_auxiliary_chain_for_all() -> None:
    assert after(default(), net("net1"), net("net2"), auxiliary()) == [(), (0,), (0,), (0, 1, 2)]
    assert after(default(), net("net1"), net("net2"), sequential=True) == [(), (0,), (0, 1)]


def test_who_builds_on_another_waits_for_it() -> None:
    bond = {"type": "bond", "linksInContainer": True, "links": [{"name": "net1"}, {"name": "ens2"}]}
    vlan = {"type": "vlan", "master": "bond0", "linkInContainer": True}
    assert after(default(), net("a"), net("b@ens2"), net("c@bond0", bond), net("d", vlan)) == [
        (),
        (0,),
        (0,),
        (0, 1, 2),
        (0, 3),
    ]
    named_before = after(default(), net("d@v1", vlan), net("c@bond0", bond), net("b@ens2"), net("a@net1"))
    assert named_before == [(), (0, 2), (0, 3, 4), (0,), (0,)]


def test_circles_and_the_hosts_interfaces_stop_nothing() -> None:
    def macvlan(master: str) -> dict[str, Any]:
        return {"type": "macvlan", "master": master}

    assert after(default({"master": "net1"}), net("a", macvlan("eth0"))) == [(), (0,)]
    assert after(default(), net("a", macvlan("net1"))) == [(), (0,)]
    assert after(default(), net("a", macvlan("net2")), net("b", macvlan("net1"))) == [(), (0,), (0, 1)]
    # The auxiliary chain would be net2: who names that means the host's.
    assert after(default(), net("a", macvlan("net2")), auxiliary()) == [(), (0,), (0, 1)]


def test_a_network_that_was_refused_is_not_waited_for() -> None:
    gone = net("a@ens1", conf=None, refusal="gone")
    nothing = Wanted(origin=Origin.DEFAULT, network="cbr0", refusal="gone")
    made = plan(nothing, gone, net("b", {"type": "macvlan", "master": "ens1"}), auxiliary())
    assert [(each.attachment.position, each.attachment.after) for each in made.attachments] == [(2, ()), (3, (2,))]


NAMES = st.sampled_from(["", "eth0", "net1", "net2", "net3", "ens1", "ens2"])
NETS = st.builds(
    lambda ifname, master, links, resource, device: net(
        element(interface=ifname, deviceID=device),
        {"type": "x", "master": master, "links": [{"name": name} for name in links]},
        resource=resource,
    ),
    NAMES,
    NAMES,
    st.lists(NAMES, max_size=3),
    st.sampled_from(["", VF]),
    st.sampled_from(["", A, B]),
)


@settings(deadline=None)
@given(st.lists(NETS | st.just(auxiliary()), max_size=6), st.lists(st.sampled_from([A, B, C])), st.booleans())
def test_any_plan_can_be_carried_out_or_is_refused(networks: list[Wanted], ids: list[str], sequential: bool) -> None:
    made = plan(default(), *networks, devices={VF: [("app", ids)]}, sequential=sequential)
    planned = [each.attachment for each in made.attachments]
    assert [each.position for each in planned] == sorted(each.position for each in planned)
    held = [each.device_id for each in planned if each.device_id]
    assert len(held) == len(set(held))
    done: set[int] = set()
    while ready := [each.position for each in planned if each.position not in done and done.issuperset(each.after)]:
        done.update(ready)
    assert len(done) == len(planned)
    if not made.refusals:
        assert len(planned) == len(networks) + 1
        assert len({each.ifname for each in planned}) == len(planned)
