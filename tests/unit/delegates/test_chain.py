"""One network: order, previous results, versions, and what is done about a failure, for every command."""

import json
import logging
from collections.abc import Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from multus.cni.conf import ConfError, NetworkConf, parse_conf, with_chained
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command, ValidAttachment
from multus.cni.result import DNS, IP, Interface, Result, Route, encode_result
from multus.cni.versions import SUPPORTED, at_least
from multus.delegates.chain import NOTHING, AtOnce, Chain, Prompt, Stretch, Target
from multus.delegates.plugin import Call, PluginError, Runner
from multus.delegates.visit import Visit
from multus.errors import MultusError

if TYPE_CHECKING:
    from tests.conftest import Noops

pytestmark = pytest.mark.anyio

TARGET = Target(
    container_id="c1",
    netns="/run/netns/x",
    ifname="net1",
    args=(("IgnoreUnknown", "true"), ("K8S_POD_NAME", "p")),
    runtime={"mac": "0a:00:00:00:00:01", "ips": ["10.0.0.9/24"], "bandwidth": {"ingressRate": 1}},
)
FULL = Result(
    interfaces=(
        Interface(name="br0", mac="0a:00:00:00:00:02", mtu=1400),
        Interface(name="net1", mac="0a:00:00:00:00:01", sandbox="/run/netns/x", pci_id="0000:01:00.1"),
    ),
    ips=(IP(address="10.0.0.9/24", gateway="10.0.0.1", interface=1), IP(address="fd00::9/64", interface=1)),
    routes=(Route(dst="0.0.0.0/0", gw="10.0.0.1", mtu=1300), Route(dst="::/0", gw="fd00::1")),
    dns=DNS(nameservers=("10.0.0.53",)),
)


class Plugins:
    """Plugins without processes: what each answers, and every call of them."""

    def __init__(self, **answers: object) -> None:
        self.answers = answers
        self.calls: list[tuple[str, Call]] = []

    async def __call__(self, plugin: str, call: Call) -> bytes:
        self.calls.append((plugin, call))
        answer = self.answers.get(plugin, b"{}" if call.command is Command.ADD else b"")
        if isinstance(answer, Exception):
            raise answer
        assert isinstance(answer, bytes)
        return answer

    @property
    def order(self) -> list[str]:
        return [f"{call.command} {plugin}" for plugin, call in self.calls]

    def confs(self) -> list[dict[str, Any]]:
        return [json.loads(call.conf) for _, call in self.calls]


def _failed(plugin: str, code: int = 100) -> PluginError:
    return PluginError(plugin, Command.ADD, code, f"{plugin} has failed", "details of it")


def _chain(plugins: Plugins) -> Chain:
    return Chain(plugins, in_process={}, bin_dirs=lambda: ("/bin/first", "/bin/second"))


def _conf(version: str = "1.0.0", types: str = "abc", **top: object) -> NetworkConf:
    body: dict[str, object] = {"name": "n", "plugins": [{"type": each} for each in types], **top}
    if version:
        body["cniVersion"] = version
    return parse_conf(json.dumps(body).encode(), where="test")


def _nameless() -> NetworkConf:
    return parse_conf(b'{"cniVersion": "1.1.0", "type": "a"}', where="test")


def _empty() -> NetworkConf:
    body = b'{"cniVersion": "1.1.0", "name": "n"}'
    return with_chained(parse_conf(body, where="test", plugins_elsewhere=True), ())


@pytest.mark.parametrize("version", SUPPORTED)
async def test_add_gives_each_plugin_the_result_of_the_one_before_in_the_network_s_version(version: str) -> None:
    plugins = Plugins(a=encode_result(FULL, version), b=b'{"cniVersion": "%s"}' % version.encode())
    last = Result(ips=(IP(address="10.0.0.1/8"),))
    plugins.answers["c"] = encode_result(last, version)
    assert await _chain(plugins).add(_conf(version), TARGET) == last
    assert plugins.order == ["ADD a", "ADD b", "ADD c"]
    first, second, third = plugins.confs()
    assert "prevResult" not in first
    assert second["prevResult"] == json.loads(encode_result(FULL, version))
    assert third["prevResult"]["cniVersion"] == version and "ips" not in third["prevResult"]
    assert {conf["cniVersion"] for conf in plugins.confs()} == {version}
    assert {conf["name"] for conf in plugins.confs()} == {"n"}


@pytest.mark.parametrize("spoken", SUPPORTED)
@pytest.mark.parametrize("version", SUPPORTED)
async def test_a_result_in_another_version_is_converted(version: str, spoken: str) -> None:
    plugins = Plugins(a=encode_result(FULL, spoken))
    await _chain(plugins).add(_conf(version, "ab"), TARGET)
    given = plugins.confs()[1]["prevResult"]
    assert given["cniVersion"] == version
    lists, listed = at_least(version, "0.3.0"), at_least(spoken, "0.3.0")
    assert ("ips" in given, "ip4" in given) == (lists, not lists)
    assert ("interfaces" in given) is (lists and listed)
    assert given["dns"] == {"nameservers": ["10.0.0.53"]}
    if lists:
        assert [ip["address"] for ip in given["ips"]] == ["10.0.0.9/24", "fd00::9/64"]
        assert ("version" in given["ips"][0]) is not at_least(version, "1.0.0")


async def test_a_network_without_a_version_is_of_the_oldest() -> None:
    plugins = Plugins(a=b'{"ip4": {"ip": "10.0.0.9/24"}}')
    result = await _chain(plugins).add(_conf("", "ab"), TARGET)
    assert result == Result()
    assert plugins.confs()[1]["prevResult"]["ip4"] == {"ip": "10.0.0.9/24"}


async def test_a_result_without_a_version_is_read_in_the_network_s() -> None:
    plugins = Plugins(a=b'{"ips": [{"address": "10.0.0.9/24"}]}')
    assert await _chain(plugins).add(_conf("1.0.0", "a"), TARGET) == Result(ips=(IP(address="10.0.0.9/24"),))


async def test_what_a_plugin_is_called_with() -> None:
    plugins = Plugins()
    conf = parse_conf(
        b'{"cniVersion":"1.0.0","name":"n","plugins":['
        b'{"type":"a","capabilities":{"mac":true,"bandwidth":false},"big":1e400,"runtimeConfig":{"own":1}},'
        b'{"type":"b"}]}',
        where="test",
    )
    await _chain(plugins).add(conf, TARGET)
    (_, call), (_, other) = plugins.calls
    assert msgspec.structs.replace(call, conf=b"") == Call(
        command=Command.ADD,
        conf=b"",
        container_id="c1",
        netns="/run/netns/x",
        ifname="net1",
        args=TARGET.args,
        path=("/bin/first", "/bin/second"),
    )
    assert b'"big":1e400' in call.conf
    assert json.loads(call.conf)["runtimeConfig"] == {"own": 1, "mac": "0a:00:00:00:00:01"}
    assert "runtimeConfig" not in json.loads(other.conf)


async def test_the_first_failure_ends_an_add_and_nothing_is_undone_here() -> None:
    plugins = Plugins(b=_failed("b"))
    with pytest.raises(PluginError) as caught:
        await _chain(plugins).add(_conf(), TARGET)
    assert (caught.value.code, caught.value.details) == (100, "details of it")
    assert caught.value.message == 'plugin type="b" failed (add): b has failed'
    assert plugins.order == ["ADD a", "ADD b"]


@pytest.mark.parametrize(
    ("printed", "code", "words"),
    [
        (b"", Code.DECODING_FAILURE, 'plugin type="b": no CNI result: it printed nothing'),
        (b"hello", Code.DECODING_FAILURE, 'plugin type="b": no CNI result'),
        (b"[]", Code.DECODING_FAILURE, 'plugin type="b": no CNI result'),
        (b'{"cniVersion": "9.9.9"}', Code.INCOMPATIBLE_VERSION, 'plugin type="b"'),
        (b'{"ips": [{"address": "nowhere"}]}', Code.DECODING_FAILURE, 'plugin type="b": no CNI result'),
    ],
)
async def test_a_plugin_that_succeeds_with_no_result(printed: bytes, code: int, words: str) -> None:
    plugins = Plugins(b=printed)
    with pytest.raises(CNIError) as caught:
        await _chain(plugins).add(_conf(), TARGET)
    assert caught.value.code == code and words in str(caught.value)
    assert plugins.order == ["ADD a", "ADD b"]


@pytest.mark.parametrize("command", ["add", "check", "status", "gc"])
@pytest.mark.parametrize(
    ("conf", "kind", "words"),
    [
        (_nameless(), ConfError, "missing network name"),
        (_empty(), ConfError, "has no plugins"),
        (_conf("9.9.9"), CNIError, "network \"n\" in CNI version '9.9.9'"),
        (_conf("1.2.0"), CNIError, "CNI version '1.2.0'"),
    ],
    ids=["no name", "no plugins", "unknown version", "newer version"],
)
async def test_a_network_that_cannot_be_used(
    command: str, conf: NetworkConf, kind: type[MultusError], words: str
) -> None:
    plugins = Plugins()
    with pytest.raises(kind, match=words):
        await _command(_chain(plugins), command, conf)
    assert plugins.calls == []


async def _command(chain: Chain, command: str, conf: NetworkConf, previous: Result | None = FULL) -> None:
    match command:
        case "add":
            await chain.add(conf, TARGET)
        case "delete":
            await chain.delete(conf, TARGET, previous)
        case "check":
            await chain.check(conf, TARGET, previous)
        case "status":
            await chain.status(conf, ("/bin/second", "/of/the/runtime"))
        case "gc":
            await chain.gc(conf, [ValidAttachment(container_id="c1", ifname="eth0")], ("/of/the/runtime",))


@pytest.mark.parametrize("version", ["", *SUPPORTED])
async def test_delete_goes_backwards_with_the_result_of_the_whole_chain(version: str) -> None:
    plugins = Plugins()
    await _chain(plugins).delete(_conf(version), TARGET, FULL)
    assert plugins.order == ["DEL c", "DEL b", "DEL a"]
    told = json.loads(encode_result(FULL, version)) if at_least(version, "0.4.0") else None
    assert [conf.get("prevResult") for conf in plugins.confs()] == [told] * 3
    call = plugins.calls[0][1]
    assert (call.container_id, call.netns, call.ifname, call.args) == ("c1", "/run/netns/x", "net1", TARGET.args)


async def test_delete_of_what_has_no_result_and_no_namespace() -> None:
    plugins = Plugins()
    await _chain(plugins).delete(_conf(), msgspec.structs.replace(TARGET, netns=""), None)
    assert ["prevResult" in conf for conf in plugins.confs()] == [False] * 3
    assert plugins.calls[0][1].netns == ""


async def test_delete_tries_every_plugin_and_raises_the_first_failure(caplog: pytest.LogCaptureFixture) -> None:
    plugins = Plugins(c=_failed("c"), a=_failed("a"))
    with caplog.at_level(logging.WARNING), pytest.raises(PluginError, match="c has failed"):
        await _chain(plugins).delete(_conf(), TARGET, FULL)
    assert plugins.order == ["DEL c", "DEL b", "DEL a"]
    assert "network n" in caplog.text and "a has failed" in caplog.text and "c has failed" not in caplog.text


async def test_delete_of_what_an_add_refused_for_its_name_or_plugins() -> None:
    plugins = Plugins(a=_failed("a"))
    for conf in (_nameless(), _empty()):
        await _chain(plugins).delete(conf, TARGET, None)
    assert plugins.calls == []


async def test_delete_in_a_version_unknown_here_is_left_to_the_plugins() -> None:
    """What another program attached may need it; a plugin that knows the version as little has attached nothing."""
    plugins = Plugins(b=_failed("b", code=Code.INCOMPATIBLE_VERSION))
    await _chain(plugins).delete(_conf("1.2.0"), TARGET, FULL)
    assert plugins.order == ["DEL c", "DEL b", "DEL a"]
    assert [conf["cniVersion"] for conf in plugins.confs()] == ["1.2.0"] * 3
    assert ["prevResult" in conf for conf in plugins.confs()] == [False] * 3
    plugins.answers["b"] = _failed("b")
    with pytest.raises(PluginError):
        await _chain(plugins).delete(_conf("1.2.0"), TARGET, FULL)
    plugins.answers["b"] = _failed("b", code=Code.INCOMPATIBLE_VERSION)
    with pytest.raises(PluginError):  # in a version known here, it is a failure like any other
        await _chain(plugins).delete(_conf("1.0.0"), TARGET, FULL)


@pytest.mark.parametrize("version", ["", *SUPPORTED])
async def test_check_is_for_0_4_0_and_newer(version: str) -> None:
    plugins = Plugins()
    await _chain(plugins).check(_conf(version), TARGET, FULL)
    if at_least(version, "0.4.0"):
        assert plugins.order == ["CHECK a", "CHECK b", "CHECK c"]
        assert [conf["prevResult"] for conf in plugins.confs()] == [json.loads(encode_result(FULL, version))] * 3
    else:
        assert plugins.calls == []


async def test_check_ends_with_the_first_that_is_not_content() -> None:
    plugins = Plugins(b=_failed("b"))
    with pytest.raises(PluginError, match="b has failed"):
        await _chain(plugins).check(_conf(), TARGET, FULL)
    assert plugins.order == ["CHECK a", "CHECK b"]


@pytest.mark.parametrize(("command", "key"), [("check", "disableCheck"), ("gc", "disableGC")])
async def test_a_network_may_forbid_it(command: str, key: str) -> None:
    plugins = Plugins(a=_failed("a"))
    await _command(_chain(plugins), command, _conf("1.1.0", "abc", **{key: True}))
    assert plugins.calls == []


@pytest.mark.parametrize("command", ["status", "gc"])
@pytest.mark.parametrize("version", ["", *SUPPORTED])
async def test_status_and_gc_are_for_1_1_0(command: str, version: str) -> None:
    plugins = Plugins()
    await _command(_chain(plugins), command, _conf(version))
    assert plugins.order == ([f"{command.upper()} {each}" for each in "abc"] if version == "1.1.0" else [])
    for _, call in plugins.calls:
        assert (call.container_id, call.netns, call.ifname, call.args) == ("", "", "", ())
        assert call.path == ("/bin/first", "/bin/second", "/of/the/runtime")


@pytest.mark.parametrize("code", [Code.NOT_AVAILABLE, Code.LIMITED_CONNECTIVITY, 999])
async def test_status_ends_with_the_first_failure_and_keeps_its_code(code: int) -> None:
    plugins = Plugins(a=_failed("a", code))
    with pytest.raises(CNIError, match="a has failed") as caught:
        await _chain(plugins).status(_conf("1.1.0"), ())
    assert caught.value.code == code
    assert plugins.order == ["STATUS a"]


async def test_gc_tells_what_is_valid_under_both_keys() -> None:
    plugins = Plugins()
    valid = [ValidAttachment(container_id="c1", ifname=name) for name in ("eth0", "net1")]
    await _chain(plugins).gc(_conf("1.1.0", "a"), valid, ())
    (conf,) = plugins.confs()
    listed = [{"containerID": "c1", "ifname": "eth0"}, {"containerID": "c1", "ifname": "net1"}]
    assert conf == {
        "type": "a",
        "name": "n",
        "cniVersion": "1.1.0",
        "cni.dev/valid-attachments": listed,
        "cni.dev/attachments": listed,
    }


async def test_gc_of_a_network_without_attachments_says_so() -> None:
    plugins = Plugins()
    await _chain(plugins).gc(_conf("1.1.0", "a"), [], ())
    assert plugins.confs()[0]["cni.dev/valid-attachments"] == []


async def test_gc_tries_every_plugin_and_raises_the_first_failure() -> None:
    plugins = Plugins(a=_failed("a"), b=_failed("b"))
    with pytest.raises(PluginError, match="a has failed"):
        await _chain(plugins).gc(_conf("1.1.0"), [], ())
    assert plugins.order == ["GC a", "GC b", "GC c"]


async def test_a_type_that_is_done_here_needs_no_binary() -> None:
    inner, outer = Plugins(b=encode_result(FULL, "1.0.0")), Plugins()
    chain = Chain(outer, in_process={"b": inner}, bin_dirs=lambda: ())
    await chain.add(_conf(), TARGET)
    await chain.delete(_conf(), TARGET, FULL)
    await chain.status(_conf("1.1.0"), ())
    assert inner.order == ["ADD b", "DEL b", "STATUS b"]
    assert [each for each in outer.order if each.endswith(" b")] == []


async def test_the_directories_are_asked_for_each_call() -> None:
    """They may change while the daemon runs."""
    directories: Mapping[str, tuple[str, ...]] = {"now": ("/old",)}
    plugins = Plugins()
    chain = Chain(plugins, in_process={}, bin_dirs=lambda: directories["now"])
    await chain.add(_conf(types="a"), TARGET)
    directories = {"now": ("/new",)}
    await chain.add(_conf(types="a"), TARGET)
    assert [call.path for _, call in plugins.calls] == [("/old",), ("/new",)]


@pytest.mark.parametrize("version", SUPPORTED)
async def test_programs_in_a_chain_from_add_to_a_second_delete(noops: "Noops", version: str) -> None:
    first, second = noops.install("one", ips=["10.0.0.9/24"]), noops.install("two")
    chain = Chain(Runner(timeout=lambda: 30.0), in_process={}, bin_dirs=lambda: (noops.directory,))
    conf = parse_conf(
        json.dumps({"cniVersion": version, "name": "n", "plugins": [{"type": "one"}, {"type": "two"}]}).encode(),
        where="test",
    )
    result = await chain.add(conf, TARGET)
    if at_least(version, "0.3.0"):
        assert result.interfaces == (Interface(name="net1", sandbox="/run/netns/x"),)
        assert result.ips == (IP(address="10.0.0.9/24", interface=0),)
    await chain.check(conf, TARGET, result)
    await chain.delete(conf, TARGET, result)
    await chain.delete(conf, msgspec.structs.replace(TARGET, netns=""), result)
    both = sorted([*first.calls(), *second.calls()], key=lambda call: call["began"])
    expected = ["ADD one", "ADD two"]
    expected += ["CHECK one", "CHECK two"] if at_least(version, "0.4.0") else []
    assert [f"{call['command']} {call['plugin']}" for call in both] == [*expected, *(["DEL two", "DEL one"] * 2)]
    assert all(before["ended"] <= after["began"] for before, after in pairwise(both))


async def test_a_program_that_fails_keeps_code_message_and_details(noops: "Noops") -> None:
    fault = {"code": 117, "msg": "no address left", "details": "range 10.0.0.0/30"}
    one = noops.install("one")
    two = noops.install("two", fail={"ADD": fault})
    chain = Chain(Runner(timeout=lambda: 30.0), in_process={}, bin_dirs=lambda: (noops.directory,))
    conf = parse_conf(
        b'{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"one"},{"type":"two"},{"type":"one"}]}', where="test"
    )
    with pytest.raises(PluginError) as caught:
        await chain.add(conf, TARGET)
    told = json.loads(caught.value.encode("1.0.0"))
    assert (told["code"], told["details"]) == (117, "range 10.0.0.0/30")
    assert told["msg"] == 'plugin type="two" failed (add): no address left'
    assert len(one.calls()) == 1
    two.told()
    assert (await chain.add(conf, TARGET)).interfaces


# ---------------------------------------------------------------- on a visit, as far as that goes


class PromptPlugins(Plugins):
    """Those in `at_work` do their ADDs on a visit: what they come to, None for nothing, an error, or that they do not.

    Any other has to be run.
    """

    RUNS = object()

    def __init__(self, at_work: Mapping[str, object], **answers: object) -> None:
        super().__init__(**answers)
        self.at_work = at_work
        self.asked: list[tuple[str, Call]] = []
        self.done: list[tuple[str, Visit]] = []

    def at_once(self, plugin: str, call: Call) -> AtOnce | None:
        self.asked.append((plugin, call))
        if self.at_work[plugin] is self.RUNS:
            return None
        return lambda visit: self._work(plugin, visit)

    def _work(self, plugin: str, visit: Visit) -> Result | None:
        self.done.append((plugin, visit))
        outcome = self.at_work[plugin]
        if isinstance(outcome, Exception):
            raise outcome
        assert outcome is None or isinstance(outcome, Result)
        return outcome


def _prompt_chain(plugins: PromptPlugins) -> Chain:
    in_process = dict.fromkeys(plugins.at_work, plugins)
    return Chain(plugins, in_process=in_process, bin_dirs=lambda: ("/bin/first",))


VISIT = Visit("/run/netns/x")
SECOND = Result(ips=(IP(address="10.0.0.2/24"),))


def _begun(plugins: PromptPlugins, conf: NetworkConf | None = None) -> Stretch:
    begin = _prompt_chain(plugins).begin(conf or _conf(), TARGET)
    assert begin is not None and plugins.done == [], "nothing is done before the visit"
    return begin(VISIT)


def test_who_does_things_on_a_visit_is_told_by_what_he_has() -> None:
    assert isinstance(PromptPlugins({}), Prompt)
    assert not isinstance(Plugins(), Prompt)


def test_a_whole_network_is_attached_on_a_visit() -> None:
    plugins = PromptPlugins({"a": FULL, "b": Result(), "c": SECOND})
    assert _begun(plugins) == Stretch(3, True, SECOND)
    assert plugins.done == [("a", VISIT), ("b", VISIT), ("c", VISIT)]
    assert plugins.calls == []


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
async def test_a_visit_s_calls_are_those_of_an_add(version: str) -> None:
    """The same configuration, previous result, arguments and paths."""
    conf = parse_conf(
        b'{"cniVersion":"%s","name":"n","plugins":[{"type":"a","capabilities":{"mac":true}},{"type":"b"},{"type":"c"}]}'
        % version.encode(),
        where="test",
    )
    plugins = PromptPlugins({"a": FULL, "b": SECOND, "c": SECOND})
    _begun(plugins, conf)
    usual = PromptPlugins({}, a=encode_result(FULL, version), b=encode_result(SECOND, version))
    await _prompt_chain(usual).add(conf, TARGET)
    assert plugins.asked == usual.calls


@pytest.mark.parametrize("reason", ["a program", "this call", "nothing done"])
@pytest.mark.parametrize(("last", "result"), [("b", FULL), ("c", SECOND)])
async def test_a_visit_ends_at_the_first_plugin_that_has_to_be_run(last: str, result: Result, reason: str) -> None:
    """`add` goes on there, with what those before have come to, which is noted first."""
    at_work: dict[str, object] = {"a": FULL, "b": SECOND, "c": Result()}
    if reason == "a program":
        del at_work[last]
    else:
        at_work[last] = PromptPlugins.RUNS if reason == "this call" else None
    plugins = PromptPlugins(at_work)
    begun = _begun(plugins)
    assert begun == Stretch("abc".index(last), False, result)
    noted: list[tuple[Result, int]] = []

    async def note(told: Result) -> None:
        noted.append((told, len(plugins.calls)))

    await _prompt_chain(plugins).add(_conf(), TARGET, note=note, begun=begun)
    assert plugins.order == [f"ADD {each}" for each in "abc"["abc".index(last) :]]
    assert plugins.confs()[0]["prevResult"] == json.loads(encode_result(result, "1.0.0"))
    assert noted[0] == (result, 0)


async def test_a_plugin_that_has_done_nothing_is_run_from_the_beginning() -> None:
    plugins = PromptPlugins({"a": None}, a=encode_result(FULL, "1.0.0"))
    begun = _begun(plugins, _conf("1.0.0", "ab"))
    assert begun == NOTHING
    noted: list[Result] = []

    async def note(told: Result) -> None:
        noted.append(told)

    await _prompt_chain(plugins).add(_conf("1.0.0", "ab"), TARGET, note=note, begun=begun)
    assert plugins.order == ["ADD a", "ADD b"]
    assert "prevResult" not in plugins.confs()[0]
    assert noted == [FULL]


@pytest.mark.parametrize("fails", ["a", "b"])
def test_a_failure_on_a_visit_is_the_plugin_s_and_nothing_follows_it(fails: str) -> None:
    plugins = PromptPlugins({"a": FULL, "b": SECOND, "c": SECOND} | {fails: _failed(fails)})
    with pytest.raises(PluginError, match=f"{fails} has failed"):
        _begun(plugins)
    assert [plugin for plugin, _ in plugins.done] == ["a", "b"][: "ab".index(fails) + 1]


@pytest.mark.parametrize(
    "conf", [_conf("1.0.0", "ra"), _conf("1.0.0", "xa"), _nameless(), _empty(), _conf("7.0.0", "a")], ids=range(5)
)
def test_nothing_is_done_on_a_visit_of_a_network_that_does_not_begin_there(conf: NetworkConf) -> None:
    """Its first plugin has to be run, or it cannot be used at all, which `add` is going to say."""
    plugins = PromptPlugins({"a": FULL, "x": PromptPlugins.RUNS})
    assert _prompt_chain(plugins).begin(conf, TARGET) is None
    assert [plugin for plugin, _ in plugins.asked] in ([], ["x"])
