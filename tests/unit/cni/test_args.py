"""CNI_ARGS: read, written, and what of them a delegate gets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.args import Pairs, PodRef, delegate_args, encode_args, parse_args, pod_ref
from multus.cni.errors import CNIError, Code

KUBELET = (
    "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web-0;"
    "K8S_POD_INFRA_CONTAINER_ID=abc;K8S_POD_UID=6b0b1a5c-0000-4000-8000-000000000000"
)
POD = PodRef(namespace="ns", name="n", uid="u", infra_container_id="c")


@pytest.mark.parametrize(
    ("text", "pairs"),
    [
        ("", ()),
        (";;", ()),
        ("IP=10.0.0.1;", (("IP", "10.0.0.1"),)),
        ("IgnoreUnknown=1;BLAHBLAH=foo=bar", (("IgnoreUnknown", "1"), ("BLAHBLAH", "foo=bar"))),  # kept whole
        ("IgnoreUnknown=TRUE;x=", (("IgnoreUnknown", "TRUE"), ("x", ""))),
        ("x=1;IgnoreUnknown=true", (("x", "1"), ("IgnoreUnknown", "true"))),  # it counts wherever it stands
        (
            "IgnoreUnknown=0;IP=1;IgnoreUnknown=1;x=2",
            (("IgnoreUnknown", "0"), ("IP", "1"), ("IgnoreUnknown", "1"), ("x", "2")),
        ),
        ("IgnoreUnknown=false;K8S_POD_NAME=a", (("IgnoreUnknown", "false"), ("K8S_POD_NAME", "a"))),
        ("IgnoreUnknown=1; a = b ", (("IgnoreUnknown", "1"), (" a ", " b "))),
    ],
)
def test_parsed(text: str, pairs: Pairs) -> None:
    assert parse_args(text) == pairs


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("IgnoreUnknown:1;K8S_POD_NAME:a", "invalid pair 'IgnoreUnknown:1'"),
        ("IgnoreUnknown=1;justakey", "invalid pair 'justakey'"),
        ("=value", "invalid pair '=value'"),
        ("x=1", "unknown keys 'x'"),
        ("x=1;IgnoreUnknown=0;y=2", "unknown keys 'x, y'"),
        ("ip=1", "unknown keys 'ip'"),  # keys are not folded
        ("IgnoreUnknown=maybe", "IgnoreUnknown is 'maybe'"),
        ("IgnoreUnknown=", "IgnoreUnknown is ''"),
        ("IgnoreUnknown=yes;x=1", "IgnoreUnknown is 'yes'"),
        ("a\nb=1", "unknown keys 'a\\nb'"),
        ("\udcff=1", "unknown keys '\\udcff'"),
    ],
)
def test_refused(text: str, words: str) -> None:
    with pytest.raises(CNIError) as caught:
        parse_args(text)
    assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert caught.value.message == f"CNI_ARGS: {words}"
    assert caught.value.hint


def test_a_refusal_is_no_longer_than_a_line() -> None:
    with pytest.raises(CNIError) as caught:
        parse_args(";".join(f"key{number}=1" for number in range(10_000)))
    assert len(str(caught.value)) < 300


def test_a_del_minds_nothing() -> None:
    assert parse_args("a;=b;IgnoreUnknown=maybe;x=1=2", tolerant=True) == (("IgnoreUnknown", "maybe"), ("x", "1=2"))


KEYS = st.text(min_size=1, max_size=8).filter(lambda key: not set("=;\0") & set(key))
VALUES = st.text(max_size=8).filter(lambda value: not set(";\0") & set(value))


@given(st.lists(st.tuples(KEYS, VALUES), max_size=6).map(tuple))
def test_what_is_written_reads_back(pairs: Pairs) -> None:
    allowed = (("IgnoreUnknown", "1"), *(pair for pair in pairs if pair[0] != "IgnoreUnknown"))
    assert parse_args(encode_args(allowed)) == allowed
    assert parse_args(encode_args(pairs), tolerant=True) == pairs


@given(st.text(st.characters(exclude_categories=()) | st.sampled_from(";="), max_size=40))
def test_whatever_it_is_it_is_pairs_or_a_cni_error(text: str) -> None:
    try:
        pairs = parse_args(text)
    except CNIError as error:
        assert error.code == Code.INVALID_ENVIRONMENT
        error.encode("1.0.0")
    else:
        assert "\0" in text or parse_args(encode_args(pairs)) == pairs
    dropped = parse_args(text, tolerant=True)
    assert all(key and "=" not in key and ";" not in key + value for key, value in dropped)


@pytest.mark.parametrize("pair", [("", "v"), ("a=b", "v"), ("a;b", "v"), ("a", "v;w=x"), ("a", "v\0"), ("a\0", "v")])
def test_a_pair_that_would_read_back_as_another_is_not_written(pair: tuple[str, str]) -> None:
    with pytest.raises(CNIError) as caught:
        encode_args([("IP", "1"), pair])
    assert caught.value.code == Code.INVALID_ENVIRONMENT


def test_the_pod_of_a_kubelet() -> None:
    assert pod_ref(parse_args(KUBELET)) == PodRef(
        namespace="default", name="web-0", infra_container_id="abc", uid="6b0b1a5c-0000-4000-8000-000000000000"
    )


@pytest.mark.parametrize(
    "text", ["", "IP=1", "K8S_POD_NAME=a", "K8S_POD_NAMESPACE=a", "K8S_POD_NAMESPACE=;K8S_POD_NAME=a"]
)
def test_no_pod(text: str) -> None:
    assert pod_ref(parse_args(text)) is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("K8S_POD_NAME", "../../secrets/x"),
        ("K8S_POD_NAME", "a?b"),
        ("K8S_POD_NAME", "a\n"),
        ("K8S_POD_NAME", "."),
        ("K8S_POD_NAME", "a" * 254),
        ("K8S_POD_NAMESPACE", "a/b"),
        ("K8S_POD_NAMESPACE", "-a"),
        ("K8S_POD_NAMESPACE", "ä"),
        ("K8S_POD_UID", "x/y"),
        ("K8S_POD_UID", "x" * 129),
        ("K8S_POD_INFRA_CONTAINER_ID", "a b"),
    ],
)
def test_what_is_no_pod_s_name_is_refused(key: str, value: str) -> None:
    pairs = {"K8S_POD_NAMESPACE": "ns", "K8S_POD_NAME": "n", key: value}
    with pytest.raises(CNIError) as caught:
        pod_ref(tuple(pairs.items()))
    assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert caught.value.message.startswith(f"CNI_ARGS: {key} is ")


def test_the_last_of_a_repeated_key_counts() -> None:
    pod = pod_ref(parse_args("K8S_POD_NAME=a;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=b"))
    assert pod is not None
    assert pod.name == "b"


@pytest.mark.parametrize("uid", ["", "some-uid"])
def test_a_delegate_s_arguments_are_exactly_upstream_s(uid: str) -> None:
    args = delegate_args(PodRef(namespace="ns", name="n", uid=uid), ())
    assert encode_args(args) == (
        f"IgnoreUnknown=true;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=n;K8S_POD_INFRA_CONTAINER_ID=;K8S_POD_UID={uid}"
    )


def test_the_runtime_s_other_pairs_follow_and_no_key_comes_twice() -> None:
    given_pairs = parse_args(f"{KUBELET};FOO=bar=baz;MAC=02:00:00:00:00:09")
    assert delegate_args(POD, given_pairs) == (
        ("IgnoreUnknown", "true"),
        ("K8S_POD_NAMESPACE", "ns"),
        ("K8S_POD_NAME", "n"),
        ("K8S_POD_INFRA_CONTAINER_ID", "c"),
        ("K8S_POD_UID", "u"),
        ("FOO", "bar=baz"),
        ("MAC", "02:00:00:00:00:09"),
    )


def test_what_the_pod_asks_for_stands_over_the_runtime_s() -> None:
    asked = delegate_args(
        POD, (("MAC", "x"), ("IP", "y"), ("A", "1")), mac="02:00:00:00:00:01", ips=("10.0.0.1/24", "fd00::1")
    )
    assert asked[5:] == (("A", "1"), ("MAC", "02:00:00:00:00:01"), ("IP", "10.0.0.1/24,fd00::1"))


def test_without_a_pod() -> None:
    assert delegate_args(None, (("K8S_POD_NAME", "a"),)) == (("IgnoreUnknown", "true"), ("K8S_POD_NAME", "a"))
