"""What a runtime asks: the environment of every command, what is refused, and what a GC must keep."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus.cni.errors import CNIError, Code
from multus.cni.request import (
    MAX_CONF,
    MAX_VALUE,
    Command,
    Request,
    ValidAttachment,
    check_container_id,
    check_ifname,
    parse_request,
    pod_ref,
    valid_attachments,
)

ENV = {
    "CNI_CONTAINERID": "0123abcd",
    "CNI_NETNS": "/run/netns/cni-1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=n",
    "CNI_PATH": "/opt/cni/bin::/usr/lib/cni",
    "MULTUS_NONCE": "aB-_9",
    "HOME": "/root",
}


def request(command: str, **changes: str) -> Request:
    return parse_request({**ENV, "CNI_COMMAND": command, **changes}, b"{}")


@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_a_container_s_call(command: str) -> None:
    assert request(command) == Request(
        command=Command(command),
        container_id="0123abcd",
        netns="/run/netns/cni-1",
        ifname="eth0",
        args=(("IgnoreUnknown", "1"), ("K8S_POD_NAMESPACE", "ns"), ("K8S_POD_NAME", "n")),
        path=("/opt/cni/bin", "/usr/lib/cni"),
        conf=b"{}",
        nonce="aB-_9",
    )


@pytest.mark.parametrize("command", ["STATUS", "GC"])
def test_a_node_s_call_needs_no_container_and_takes_none(command: str) -> None:
    path = ("/opt/cni/bin", "/usr/lib/cni")
    assert request(command) == Request(command=Command(command), conf=b"{}", path=path, nonce="aB-_9")
    assert parse_request({"CNI_COMMAND": command}, b"x") == Request(command=Command(command), conf=b"x")
    assert request(command, CNI_CONTAINERID="../x", CNI_NETNS="y", CNI_ARGS="?").container_id == ""


def test_version_needs_nothing() -> None:
    assert parse_request({"CNI_COMMAND": "VERSION", "CNI_ARGS": "?"}, b"") == Request(command=Command.VERSION, conf=b"")


@pytest.mark.parametrize("command", ["", "add", "ADD ", "PUT", "ADD\0", "x" * 1000])
def test_other_commands(command: str) -> None:
    with pytest.raises(CNIError, match="CNI_COMMAND is") as caught:
        request(command)
    assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert len(str(caught.value)) < 130


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("ADD", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ("CHECK", ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME")),
        ("DEL", ("CNI_CONTAINERID", "CNI_IFNAME")),  # the namespace may be gone
    ],
)
def test_all_that_is_missing_is_named_at_once(command: str, missing: tuple[str, ...]) -> None:
    with pytest.raises(CNIError) as caught:
        parse_request({"CNI_COMMAND": command, "CNI_CONTAINERID": ""}, b"{}")
    assert caught.value.message == f"{command} without {', '.join(missing)}"
    for name in missing:
        with pytest.raises(CNIError, match=f"^{command} without {name} "):
            request(command, **{name: ""})


def test_args_path_and_nonce_may_be_missing() -> None:
    env = {key: value for key, value in ENV.items() if key not in ("CNI_ARGS", "CNI_PATH", "MULTUS_NONCE")}
    found = parse_request({**env, "CNI_COMMAND": "ADD"}, b"{}")
    assert (found.args, found.path, found.nonce) == ((), (), "")


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("CNI_CONTAINERID", "../../etc/passwd", "letters, digits"),
        ("CNI_CONTAINERID", ".", "letters, digits"),
        ("CNI_CONTAINERID", "-rf", "letters, digits"),
        ("CNI_CONTAINERID", "a\n", "letters, digits"),
        ("CNI_CONTAINERID", "é", "letters, digits"),
        ("CNI_CONTAINERID", "a" * 129, "longer than 128"),
        ("CNI_NETNS", "run/netns/x", "absolute path"),
        ("CNI_NETNS", "/" * 4096, "absolute path"),
        ("CNI_NETNS", "/run/\0", "NUL"),
        ("CNI_NETNS", "/run/\udcff", "not UTF-8"),
        ("CNI_IFNAME", "a" * 16, "1 to 15 bytes"),
        ("CNI_IFNAME", "é" * 8, "1 to 15 bytes"),
        ("CNI_IFNAME", "a/b", "slash"),
        ("CNI_IFNAME", "..", "must not be"),
        ("CNI_ARGS", "x" * (MAX_VALUE + 1), "longer than"),
        ("CNI_PATH", "/a\0", "NUL"),
        ("MULTUS_NONCE", "a b", "up to 64"),
        ("MULTUS_NONCE", "a" * 65, "up to 64"),
    ],
)
@pytest.mark.parametrize("command", ["ADD", "DEL", "CHECK"])
def test_refused(command: str, name: str, value: str, words: str) -> None:
    with pytest.raises(CNIError) as caught:
        request(command, **{name: value})
    assert caught.value.code == Code.INVALID_ENVIRONMENT
    assert caught.value.message.startswith(f"{name} is '")
    assert words in caught.value.hint
    assert len(caught.value.message) < 350  # escapes make a character four at most
    assert caught.value.message.isascii()


@pytest.mark.parametrize(
    "args",
    [
        "K8S_POD_NAME",
        "FOO=bar",
        "IgnoreUnknown=maybe",
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=a/b;K8S_POD_NAME=n",
        "K8S_POD_NAMESPACE=ns;K8S_POD_NAME=../n;K8S_POD_UID=u;IgnoreUnknown=1;FOO=bar",
    ],
)
def test_a_del_passes_with_arguments_that_no_add_came_through_with(args: str) -> None:
    """The runtime would repeat it for ever, and the pod would never go away."""
    with pytest.raises(CNIError):
        pod_ref(request("ADD", CNI_ARGS=args).args)
    found = request("DEL", CNI_ARGS=args)
    assert pod_ref(found.args) is None


def test_a_del_keeps_the_arguments_that_are_none_of_the_pod_s() -> None:
    args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=ns;K8S_POD_NAME=..;FOO=bar;IP=10.0.0.1"
    assert request("DEL", CNI_ARGS=args).args == (("IgnoreUnknown", "1"), ("FOO", "bar"), ("IP", "10.0.0.1"))


def test_a_conf_is_measured_not_read() -> None:
    env = {**ENV, "CNI_COMMAND": "ADD"}
    assert parse_request(env, b"\xff" * MAX_CONF).conf == b"\xff" * MAX_CONF
    with pytest.raises(CNIError) as caught:
        parse_request(env, b" " * (MAX_CONF + 1))
    assert caught.value.code == Code.INVALID_NETWORK_CONFIG


TEXT = st.text(st.characters(exclude_categories=()), max_size=20)


@given(
    st.sampled_from([*Command, ""]) | TEXT,
    st.dictionaries(st.sampled_from([*ENV]), TEXT | st.sampled_from([*ENV.values()]) | st.just("x" * 200_000)),
    st.binary(max_size=20),
)
def test_whatever_it_is_it_is_a_request_or_a_cni_error(command: str, env: dict[str, str], conf: bytes) -> None:
    try:
        found = parse_request({**ENV, **env, "CNI_COMMAND": command}, conf)
    except CNIError as error:
        assert error.code == Code.INVALID_ENVIRONMENT
        assert json.loads(error.encode("1.0.0"))["msg"]
        return
    assert found.conf == conf
    assert not found.container_id or check_container_id(found.container_id) == ""
    assert check_ifname(found.ifname) == ""
    assert "/" not in found.container_id + found.ifname
    if found.command is Command.DEL:
        pod_ref(found.args)  # whoever takes it down may ask without fear


@pytest.mark.parametrize("name", ["eth0", "a" * 15, "é" * 7, "my_interface", "net-1", "a.b", "...", "@"])
def test_interface_names(name: str) -> None:
    assert check_ifname(name) == ""


@pytest.mark.parametrize(
    "name", ["", "a" * 16, "é" * 8, ".", "..", "a/b", "a:b", "a b", "a\tb", "a\n", "a\x00", "a\x7f"]
)
def test_interface_names_that_the_kernel_refuses(name: str) -> None:
    assert check_ifname(name).startswith("it must")


ETH0, NET1 = ValidAttachment(container_id="c", ifname="eth0"), ValidAttachment(container_id="d", ifname="net1")
ETH0_JSON, NET1_JSON = '{"containerID":"c","ifname":"eth0"}', '{"containerID":"d","ifname":"net1","more":1}'


@pytest.mark.parametrize(
    ("conf", "expected"),
    [
        (f'{{"cni.dev/valid-attachments":[{ETH0_JSON},{NET1_JSON}]}}', (ETH0, NET1)),
        (f'{{"cni.dev/attachments":[{NET1_JSON}]}}', (NET1,)),
        (f'{{"cni.dev/attachments":[{NET1_JSON}],"cni.dev/valid-attachments":[{ETH0_JSON}]}}', (ETH0,)),
        (f'{{"cni.dev/attachments":[{NET1_JSON}],"cni.dev/valid-attachments":null}}', (NET1,)),
        ('{"cni.dev/valid-attachments":[]}', ()),
        # Go writes an empty slice that nobody made as null: CRI-O on a node without pods.
        ('{"cni.dev/valid-attachments":null}', ()),
        ('{"cni.dev/valid-attachments":null,"cni.dev/attachments":null}', ()),
        ('{"name":"n"}', None),  # not said: nothing may be called stale
        ("{}", None),
    ],
)
def test_what_a_gc_must_keep(conf: str, expected: tuple[ValidAttachment, ...] | None) -> None:
    assert valid_attachments(conf.encode()) == expected


@pytest.mark.parametrize(
    "conf",
    [
        "",
        "[]",
        "{",
        '{"cni.dev/valid-attachments":{}}',
        '{"cni.dev/valid-attachments":[null]}',
        '{"cni.dev/valid-attachments":[{"containerID":"c"}]}',
        '{"cni.dev/valid-attachments":[{"containerID":"c","ifname":1}]}',
    ],
)
def test_a_gc_that_cannot_be_read_keeps_everything(conf: str) -> None:
    with pytest.raises(CNIError) as caught:
        valid_attachments(conf.encode())
    assert caught.value.code == Code.DECODING_FAILURE
