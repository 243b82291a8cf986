"""A timeline as it is fetched and drawn."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from multus.cli.ready import AskError
from multus.cli.timeline import fetch, show
from multus.timeline import Span, Timeline

LINES = Timeline(
    command="ADD",
    container_id="c1",
    ifname="eth0",
    pod="ns/web",
    began=1.0,
    seconds=0.040,
    outcome="ok",
    spans=(
        Span(phase="queue", begin=0.0, end=0.0001),
        Span(phase="turn", ifname="net1", begin=0.009, end=0.010),
        Span(phase="turn", ifname="eth0", begin=0.010, end=0.01001),
        Span(phase="network", what="default/n1", ifname="net1", begin=0.010, end=0.030),
        Span(phase="plugin", what="macvlan", ifname="net1", begin=0.010, end=0.030),
        Span(phase="network", what="cluster-net", ifname="eth0", begin=0.0101, end=0.0201),
        Span(phase="ipam", what="host-local", ifname="net1", begin=0.012, end=0.0121),
        Span(phase="status", begin=0.030, end=0.039),
    ),
)


@contextmanager
def answering(path: Path, answer: bytes) -> Iterator[list[bytes]]:
    """One connection's worth of a daemon."""
    asked: list[bytes] = []
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            stream, _ = listener.accept()
            with stream:
                asked.append(stream.recv(4096))
                stream.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield asked
        thread.join(10)


def http(body: bytes, status: str = "200 OK") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body


def test_the_newest_call_of_the_container_is_fetched(tmp_path: Path) -> None:
    path = tmp_path / "multus.sock"
    replaced = msgspec.structs.replace
    older = replaced(LINES, began=0.5, seconds=9.0)
    others = [older, LINES, replaced(LINES, command="DEL"), replaced(LINES, ifname="other")]
    with answering(path, http(msgspec.json.encode(others))) as asked:
        assert fetch(path, "ADD", "c1", "eth0") == LINES
    assert asked[0].startswith(b"GET /timelines?container=c1 HTTP/1.1\r\n")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (http(b"[]"), "keeps no ADD of container c1"),
        (http(b"", "404 Not Found"), "keeps no timelines"),
        (http(b'[{"command":1}]'), "cannot be read"),
        (http(b"\xff"), "cannot be read"),
        (b"SSH-2.0-x\r\n", "multus.sock"),
        (b"", "multus.sock"),
    ],
)
def test_what_is_no_timeline_is_told(tmp_path: Path, answer: bytes, said: str) -> None:
    path = tmp_path / "multus.sock"
    with answering(path, answer), pytest.raises(AskError, match=said):
        fetch(path, "ADD", "c1", "eth0")


def test_nobody_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(AskError, match=r"none\.sock"):
        fetch(tmp_path / "none.sock", "ADD", "c1", "eth0")


def test_bars_stand_where_the_time_went(capsys: pytest.CaptureFixture[str]) -> None:
    show(LINES, whole=0.042)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1:2] for line in printed] == [
        [],  # an empty line, the pod, the header
        [],
        [],
        [".                                       "],
        ["          ====================          "],
        ["         =                              "],
        ["          ====================          "],
        ["            .                           "],
        ["          ==========                    "],
        ["                              ========= "],
        ["========================================"],
        [],
    ]
    assert [line.partition("|")[0].split() for line in printed[1:]] == [
        ["ADD", "ns/web:", "ok"],
        ["PHASE", "FROM", "ms", "TOOK", "ms"],
        ["queue", "0.0", "0.1"],
        ["net1", "default/n1", "10.0", "20.0"],
        ["turn", "9.0", "1.0"],
        ["plugin", "macvlan", "10.0", "20.0"],
        ["ipam", "host-local", "12.0", "0.1"],
        ["eth0", "cluster-net", "10.1", "10.0"],
        ["status", "30.0", "9.0"],
        ["all", "of", "it", "0.0", "40.0"],
        ["the", "caller", "waited", "42.0", "ms:", "2.0", "ms", "outside", "multusd"],
    ]
