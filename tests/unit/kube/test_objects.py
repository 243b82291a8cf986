"""Pods and NADs out of JSON: what is kept, and that nothing but ValueError comes of the rest."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.kube.claims import AllocatedDevice, Claim, Slice, SliceDevice, decode_claim, decode_slices
from multus.kube.limits import Limits
from multus.kube.objects import (
    DEFAULT_NETWORK,
    NAD,
    NETWORK_STATUS,
    NETWORKS,
    RESOURCE_NAME,
    ClaimUse,
    ExtendedClaim,
    Pod,
    PodClaim,
    RequestMapping,
    decode_nad,
    decode_pod,
)


def encoded(**body: Any) -> bytes:
    return json.dumps(body).encode()


def pod(annotations: Any = None, spec: Any = None, status: Any = None, **metadata: Any) -> Pod:
    whole = {"name": "web", "namespace": "shop", "annotations": annotations, **metadata}
    return decode_pod(encoded(kind="Pod", metadata=whole, spec=spec, status=status))


def test_pod() -> None:
    read = pod(
        {NETWORKS: "a,b", DEFAULT_NETWORK: "kube-system/d", NETWORK_STATUS: "[]", "else": "ignored"},
        {
            "nodeName": "node-1",
            "hostNetwork": True,
            "initContainers": [{"name": "first"}],
            "containers": [{"name": "main", "image": "x"}, {"name": "side"}],
        },
        {"phase": "Pending"},
        uid="u-1",
        labels={"a": "b"},
    )
    assert read == Pod(
        namespace="shop",
        name="web",
        uid="u-1",
        node="node-1",
        networks="a,b",
        default_network="kube-system/d",
        status="[]",
        host_network=True,
        containers=("first", "main", "side"),
    )


def test_absent_and_null_are_the_same() -> None:
    bare = decode_pod(encoded(metadata={"name": "web", "namespace": "shop"}))
    assert bare == Pod(namespace="shop", name="web")
    assert bare == pod({NETWORKS: None, NETWORK_STATUS: None}, {"containers": None, "resourceClaims": None}, None)
    assert pod({NETWORK_STATUS: ""}).status == ""


@pytest.mark.parametrize(
    ("annotations", "static", "mirrors"),
    [
        ({}, False, ""),
        ({"kubernetes.io/config.source": "api"}, False, ""),
        ({"kubernetes.io/config.source": "api", "kubernetes.io/config.hash": "h"}, False, ""),
        ({"kubernetes.io/config.source": "file", "kubernetes.io/config.hash": "h"}, True, "h"),
        ({"kubernetes.io/config.source": "http"}, True, ""),
        ({"kubernetes.io/config.hash": "h"}, False, ""),
    ],
)
def test_static_pods(annotations: dict[str, str], static: bool, mirrors: str) -> None:
    read = pod(annotations)
    assert (read.static, read.mirrors) == (static, mirrors)


def test_claims_named_in_the_spec_and_made_from_templates() -> None:
    read = pod(
        spec={
            "resourceClaims": [
                {"name": "made", "resourceClaimTemplateName": "t"},
                {"name": "own", "resourceClaimName": "my-claim"},
                {"name": "unneeded", "resourceClaimTemplateName": "t"},
            ],
            "containers": [
                {"name": "a", "resources": {"claims": [{"name": "own"}, {"name": "made", "request": "nic"}]}},
                {"name": "b", "resources": {"claims": [{"name": "made"}], "limits": {"cpu": "1"}}},
            ],
        },
        status={
            "resourceClaimStatuses": [
                {"name": "made", "resourceClaimName": "web-made-x7"},
                {"name": "unneeded"},
                {"name": "orphan", "resourceClaimName": "only-in-status"},
            ],
            "extendedResourceClaimStatus": {
                "resourceClaimName": "web-extended",
                "requestMappings": [{"containerName": "a", "resourceName": "x.com/nic", "requestName": "r0"}],
            },
        },
    )
    assert read.claims == (
        PodClaim(claim="web-made-x7", uses=(ClaimUse(container="a", request="nic"), ClaimUse(container="b"))),
        PodClaim(claim="my-claim", uses=(ClaimUse(container="a"),)),
        PodClaim(claim="only-in-status"),
    )
    assert read.extended == ExtendedClaim(
        claim="web-extended", mappings=(RequestMapping(container="a", resource="x.com/nic", request="r0"),)
    )


def test_limits_of_containers_that_ask_for_hugepages_or_devices() -> None:
    read = pod(
        spec={
            "initContainers": [{"name": "i", "resources": {"limits": {"memory": "1Gi"}}}],
            "containers": [
                {
                    "name": "fw",
                    "resources": {"limits": {"hugepages-2Mi": "512Mi", "x.com/nic": 1}},
                    "securityContext": {"capabilities": {"add": ["IPC_LOCK"]}},
                },
                {"name": "odd", "resources": {"limits": "none"}, "securityContext": []},
                {"name": "web"},
            ],
        }
    )
    assert read.limits == (Limits(container="fw", amounts={"hugepages-2Mi": "512Mi", "x.com/nic": "1"}, locks=True),)


def test_nad() -> None:
    config = '{"cniVersion": "1.0.0",\n "type": "macvlan"}'
    body = encoded(
        metadata={"name": "n", "namespace": "d", "uid": "u", "annotations": {RESOURCE_NAME: "x.com/nic"}},
        spec={"config": config},
    )
    assert decode_nad(body) == NAD(namespace="d", name="n", uid="u", config=config, resource="x.com/nic")
    for spec in ({}, {"config": None}, None):
        assert decode_nad(encoded(metadata={"name": "n", "namespace": "d"}, spec=spec)).config == ""


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b'{"metadata": {"name": "n"}}',
        b'{"metadata": {"name": "", "namespace": "d"}}',
        b'{"metadata": {"name": "n", "namespace": ""}}',
        b'{"metadata": {"name": "n", "namespace": "d", "annotations": {"%s": 5}}}' % NETWORKS.encode(),
        b'{"metadata": {"name": "n", "namespace": "d"}, "spec": {"config": {"type": "macvlan"}, "containers": {}}}',
        b'{"metadata": {"name": "n", "namespace": "d\xff"}}',
        b'{"metadata": {"name": "n", "namespace": "d"}, "spec": ' + b"[" * 100_000,
        b'{"metadata": {"name": "n", "namespace": "d"}, "else": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
def test_unreadable(data: bytes) -> None:
    for decode in (decode_pod, decode_nad):
        with pytest.raises(ValueError):
            decode(data)


_KEYS = st.sampled_from(
    [
        "metadata",
        "name",
        "namespace",
        "uid",
        "annotations",
        "spec",
        "config",
        "status",
        NETWORKS,
        "containers",
        "items",
        "resourceClaims",
        "resources",
        "claims",
        "resourceClaimStatuses",
        "allocation",
        "devices",
        "results",
        "pool",
    ]
)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_KEYS | st.text(max_size=3), inner, max_size=6),
    max_leaves=30,
)


@given(st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode()))
def test_only_value_errors(data: bytes) -> None:
    for decode in (decode_pod, decode_nad, decode_claim, decode_slices):
        with contextlib.suppress(ValueError):
            decode(data)


def test_claim() -> None:
    results = [
        {
            "request": "nic/fast",
            "driver": "d.com",
            "pool": "node-1",
            "device": "vf-3",
            "adminAccess": True,
            "shareID": "s",
        }
    ]
    body = encoded(
        metadata={"name": "c", "namespace": "shop", "uid": "u"},
        status={"allocation": {"devices": {"results": results, "config": []}, "nodeSelector": {}}},
    )
    device = AllocatedDevice(request="nic/fast", driver="d.com", pool="node-1", device="vf-3")
    assert decode_claim(body) == Claim(namespace="shop", name="c", uid="u", allocated=(device,))


@pytest.mark.parametrize(
    ("status", "allocated"), [(None, None), ({}, None), ({"allocation": {}}, ()), ({"allocation": {"devices": {}}}, ())]
)
def test_claim_without_devices(status: Any, allocated: Any) -> None:
    assert decode_claim(encoded(metadata={"name": "c", "namespace": "s"}, status=status)).allocated == allocated


def test_slices() -> None:
    attributes = {
        "k8s.cni.cncf.io/deviceID": {"string": "0000:03:02.0"},
        "k8s.cni.cncf.io/resourceName": {"string": "x.com/nic"},
        "numa": {"int": 1},
    }
    devices = [{"name": "vf-0", "attributes": attributes}, {"name": "gpu", "attributes": {"numa": {"int": 0}}}]
    devices += [{"name": "odd", "attributes": {"k8s.cni.cncf.io/deviceID": {"int": 3}}}, {"name": "bare"}]
    spec = {"driver": "d.com", "pool": {"name": "node-1", "generation": 4}, "nodeName": "node-1", "devices": devices}
    page = encoded(metadata={"continue": "next"}, items=[{"metadata": {"name": "s-1"}, "spec": spec}])
    slices, more = decode_slices(page)
    assert more == "next"
    assert slices == (
        Slice(
            name="s-1",
            driver="d.com",
            pool="node-1",
            generation=4,
            devices=(
                SliceDevice(name="vf-0", device_id="0000:03:02.0", resource="x.com/nic"),
                SliceDevice(name="gpu"),
                SliceDevice(name="odd"),
                SliceDevice(name="bare"),
            ),
        ),
    )
    assert decode_slices(encoded(metadata={}, items=None)) == ((), "")
