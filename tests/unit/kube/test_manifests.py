"""Manifests as people write them, and as attackers do."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.kube.manifests import MAX_FILE, ManifestError, Manifests, made_up_uid, parse_manifests
from multus.kube.objects import NAD, NETWORKS

WALK_THROUGH = b"""
apiVersion: "k8s.cni.cncf.io/v1"
kind: NetworkAttachmentDefinition
metadata:
  name: macvlan-conf
spec:
  config: '{
      "cniVersion": "0.3.0",
      "type": "macvlan"
    }'
---
# the pod
apiVersion: v1
kind: Pod
metadata:
  name: samplepod
  annotations:
    k8s.v1.cni.cncf.io/networks: macvlan-conf
    since: 2020-01-01
spec:
  containers:
  - name: samplepod
    command: ["/bin/ash", "-c", "trap : TERM INT; sleep infinity & wait"]
    image: alpine
...
---
"""


def parse(text: str | bytes, json: bool = False) -> Manifests:
    return parse_manifests(text.encode() if isinstance(text, str) else text, where="f.yaml", json=json)


def test_the_walk_through() -> None:
    found = parse(WALK_THROUGH)
    assert found.nads == (
        NAD(namespace="default", name="macvlan-conf", config='{ "cniVersion": "0.3.0", "type": "macvlan" }'),
    )
    (pod,) = found.pods
    assert (pod.namespace, pod.name, pod.networks, pod.containers) == (
        "default",
        "samplepod",
        "macvlan-conf",
        ("samplepod",),
    )
    assert found.warnings == () and found.others == 0


def test_a_pod_without_a_uid_gets_one_that_stays() -> None:
    pod = parse(WALK_THROUGH).pods[0]
    assert pod.uid == parse(WALK_THROUGH).pods[0].uid == made_up_uid("default", "samplepod")
    assert pod.uid != made_up_uid("other", "samplepod")
    own = parse("{kind: Pod, apiVersion: v1, metadata: {name: a, uid: mine}}").pods[0]
    assert own.uid == "mine"


def test_lists() -> None:
    found = parse("""
kind: List
apiVersion: v1
items:
- {kind: Pod, apiVersion: v1, metadata: {name: a}}
- {kind: NetworkAttachmentDefinition, apiVersion: k8s.cni.cncf.io/v1, metadata: {name: n, namespace: x}}
- {kind: Service, apiVersion: v1, metadata: {name: s}}
- 5
---
kind: PodList
apiVersion: v1
items: [{metadata: {name: b}}]
---
kind: NetworkAttachmentDefinitionList
apiVersion: k8s.cni.cncf.io/v1
items: [{metadata: {name: m}}]
---
kind: PodList
apiVersion: v1
items: null
""")
    assert [pod.name for pod in found.pods] == ["a", "b"]
    assert [(nad.namespace, nad.name) for nad in found.nads] == [("x", "n"), ("default", "m")]
    assert found.others == 1
    assert found.warnings == ("f.yaml: an item of a List that is not an object is left out",)


def test_json() -> None:
    body = {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "a", "annotations": {NETWORKS: '[{"name":"n"}]'}}}
    text = json.dumps(body, indent="\t")
    assert parse(text, json=True).pods[0].networks == '[{"name":"n"}]'
    with pytest.raises(ManifestError):
        parse(text[:-1], json=True)


@pytest.mark.parametrize(
    ("text", "value"), [("yes", True), ("On", True), ("FALSE", False), ("off", False), ("~", False)]
)
def test_booleans_as_kubectl_reads_them(text: str, value: bool) -> None:
    found = parse(f"{{kind: Pod, apiVersion: v1, metadata: {{name: a}}, spec: {{hostNetwork: {text}}}}}")
    assert found.pods[0].host_network is value


def test_aliases_and_merges_work() -> None:
    found = parse("""
kind: List
apiVersion: v1
common: &common {apiVersion: v1, kind: Pod}
items:
- {<<: *common, metadata: &m {name: a, namespace: &ns shop}}
- {<<: *common, metadata: {<<: *m, name: b}}
""")
    assert [(pod.namespace, pod.name) for pod in found.pods] == [("shop", "a"), ("shop", "b")]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{kind: Pod, apiVersion: v1}", "Pod without a name is left out: Object missing required field `metadata`"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: ../x}}", "is not a name that a pod can have"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: a, namespace: A}}", "a name that a namespace can have"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: 5}}", "Expected `str`, got `int`"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: a, annotations: {%s: true}}}" % NETWORKS, "got `bool`"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: a}, ? [x] : y}", "unhashable"),
        ("{kind: Pod, apiVersion: v1, metadata: {name: a}, true: y}", "Only dicts with str-like"),
        ("{kind: Pod, metadata: {name: a}}", "kind and apiVersion must be there"),
        ("{apiVersion: v1, metadata: {name: a}}", "kind and apiVersion must be there"),
        (
            "{kind: NetworkAttachmentDefinition, apiVersion: k8s.cni.cncf.io/v1, metadata: {name: a}, spec: []}",
            "Expected `object | null`, got `array`",
        ),
        ("just text", "a document that is not an object"),
        ("[1, 2]", "a document that is not an object"),
    ],
)
def test_one_bad_object_does_not_hide_the_others(text: str, says: str) -> None:
    good = "{kind: Pod, apiVersion: v1, metadata: {name: good}}"
    if "unhashable" in says:
        with pytest.raises(ManifestError, match=says):
            parse(text)
        return
    found = parse(f"{text}\n---\n{good}\n")
    assert [pod.name for pod in found.pods] == ["good"]
    assert len(found.warnings) == 1 and says in found.warnings[0]


def _laughs(levels: int = 9) -> str:
    lines = ["a: &a [lol, lol, lol, lol, lol, lol, lol, lol, lol]"]
    for number in range(1, levels):
        name, before = chr(97 + number), chr(96 + number)
        lines.append(f"{name}: &{name} [" + ", ".join([f"*{before}"] * 9) + "]")
    return "\n".join(lines)


def _merges(levels: int = 30) -> str:
    lines = ["a0: &a0 {x: y}"]
    lines += [f"a{n}: &a{n} {{<<: [*a{n - 1}, *a{n - 1}]}}" for n in range(1, levels)]
    return "\n".join(lines)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (_laughs(), "aliases are written out"),
        (_merges(), "aliases are written out"),
        ("a: &a [*a]", "not ended"),
        ("a: &a {<<: *a}", "not ended"),
        ("a: &a x\n---\nb: *a", "not there"),
        ("a: *b", "not there"),
        ("!!python/object/apply:os.system [x]", "tags are not read here"),
        ("!local x", "tags are not read here"),
        ("!!binary aGVsbG8=", "tags are not read here"),
        ("!!int '1:1:1'", "tags are not read here"),
        ("[" * 1_000_000, "nesting depth"),
        ("- " * 1_000_000, "nested more than 64 deep"),
        ("[" * 65 + "]" * 65, "nested more than 64 deep"),
        ("[" + "[]," * 1_000_000 + "]", "weighs more"),
        ("[" + "a," * 1_000_000 + "]", "weighs more"),
        ("x" * (MAX_FILE + 1), "is larger than"),
        ("a: b: c", "line 1, column 5"),
        ("{", "line 2, column 1"),
        ("\tx: y", "line 1"),
        ("a: 'x", "line 1"),
        (b"\xff\xfe\xfd", "codec"),
        ("a\x00b", "control characters"),
    ],
)
def test_hostile_files_are_refused_soon(text: str | bytes, says: str) -> None:
    begun = time.process_time()
    with pytest.raises(ManifestError, match=says):
        parse(text)
    assert time.process_time() - begun < 5


def test_deep_json_is_refused() -> None:
    with pytest.raises(ManifestError, match="recursion"):
        parse('{"a":' * 100_000, json=True)


@pytest.mark.parametrize(
    "number", ["9" * 100_000, "1:" * 50_000 + "1", "0x" + "f" * 100_000, "1e999999", ".inf", "0o7"]
)
def test_numbers_that_cost_much_or_are_none_stay_text(number: str) -> None:
    found = parse("{kind: Pod, apiVersion: v1, metadata: {name: a, annotations: {%s: %s}}}" % (NETWORKS, number))
    assert found.pods[0].networks == number


@given(st.binary(max_size=80) | st.text(max_size=80) | st.text("{}[]:,-&*!?<|>'\"\n ab1", max_size=40), st.booleans())
def test_only_manifest_errors(data: bytes | str, as_json: bool) -> None:
    try:
        parse(data.encode("utf-8", "replace") if isinstance(data, str) else data, json=as_json)
    except ManifestError as error:
        assert str(error).startswith("f.yaml: ") or "larger" in str(error)
