"""The frames between shim and daemon: what is encoded comes back, and nothing but FrameError comes of anything else."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multus import wire
from multus.wire import (
    HEADER_SIZE,
    MAGIC,
    MAX_CONF,
    MAX_ENV,
    MAX_OUTPUT,
    FrameError,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    request_size,
)

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=40)
NAMES = TEXT.filter(lambda name: bool(name) and "=" not in name)


def header(first: int, second: int, magic: bytes = MAGIC) -> bytes:
    return struct.pack(">8sII", magic, first, second)


@given(env=st.dictionaries(NAMES, TEXT, max_size=8), conf=st.binary(max_size=200))
def test_a_request_comes_back(env: dict[str, str], conf: bytes) -> None:
    frame = decode_request(encode_request(env, conf))
    assert (frame.env, frame.conf) == (env, conf)


@given(code=st.integers(0, 255), stdout=st.binary(max_size=200))
def test_a_response_comes_back(code: int, stdout: bytes) -> None:
    frame = decode_response(encode_response(code, stdout))
    assert (frame.code, frame.stdout) == (code, stdout)


def test_the_layout_is_the_one_that_the_shim_has() -> None:
    assert encode_request({"A": "b"}, b"{}") == b"\0MULTUS\x01" + b"\0\0\0\4" + b"\0\0\0\2" + b"A=b\0" + b"{}"
    assert encode_response(7, b"xyz") == b"\0MULTUS\x01" + b"\0\0\0\7" + b"\0\0\0\3" + b"xyz"


def test_the_limits_are_the_ones_that_the_shim_has() -> None:
    assert (MAX_ENV, MAX_CONF, MAX_OUTPUT) == (256 * 1024, 4 * 1024 * 1024, 16 * 1024 * 1024)
    assert wire.MAX_REQUEST == HEADER_SIZE + MAX_ENV + MAX_CONF


def test_the_first_of_equal_names_counts_as_for_getenv() -> None:
    env = b"CNI_IFNAME=eth0\0CNI_IFNAME=eth1\0"
    assert decode_request(header(len(env), 0) + env).env == {"CNI_IFNAME": "eth0"}


def test_a_value_may_hold_anything_but_nul() -> None:
    env = {"CNI_ARGS": "A=b;C=d=e\nf\tg", "EMPTY": ""}
    assert decode_request(encode_request(env, b"")).env == env


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 bytes where a header of 16 is due"),
        (header(0, 0)[:-1], "15 bytes where a header"),
        (header(0, 0, b"\0MULTUS\x02"), "begins with"),
        (header(0, 0, b"GET / HT"), "begins with"),
        (header(MAX_ENV + 1, 0), "bytes of environment, at most"),
        (header(0, MAX_CONF + 1), "bytes of network configuration, at most"),
        (header(0xFFFFFFFF, 0xFFFFFFFF), "bytes of environment, at most"),
        (header(0, 3) + b"{}", "18 bytes where its header announces 19"),
        (header(0, 1) + b"{}", "18 bytes where its header announces 17"),
        (header(3, 0) + b"A=b", "does not end with NUL"),
        (header(2, 0) + b"A\0", "is no environment variable"),
        (header(3, 0) + b"=b\0", "is no environment variable"),
        (header(1, 0) + b"\0", "is no environment variable"),
        (header(4, 0) + b"A=\xff\0", "not UTF-8 at byte 2"),
    ],
)
def test_what_is_no_request_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        decode_request(data)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"\0", "1 bytes where a header"),
        (header(0, 0, b"HTTP/1.1"), "begins with"),
        (header(256, 0), "out of range"),
        (header(0, MAX_OUTPUT + 1), "out of range"),
        (header(0, 2) + b"x", "announces 18"),
        (header(0, 0) + b"x", "announces 16"),
    ],
)
def test_what_is_no_response_is_refused(data: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        decode_response(data)


@pytest.mark.parametrize(
    ("env", "conf", "says"),
    [
        ({"": "x"}, b"", "cannot be sent"),
        ({"A=B": "x"}, b"", "cannot be sent"),
        ({"A\0": "x"}, b"", "cannot be sent"),
        ({"A": "x\0y"}, b"", "cannot be sent"),
        ({"A": "\udc80"}, b"", "is not text"),
        ({"A": "x" * MAX_ENV}, b"", "bytes of environment, at most"),
        ({}, bytes(MAX_CONF + 1), "bytes of network configuration, at most"),
    ],
)
def test_what_could_not_be_read_is_not_written(env: dict[str, str], conf: bytes, says: str) -> None:
    with pytest.raises(FrameError, match=says):
        encode_request(env, conf)


def test_the_largest_request_and_response_pass() -> None:
    env = {"A": "x" * (MAX_ENV - 3)}
    assert decode_request(encode_request(env, bytes(MAX_CONF))).env == env
    assert len(decode_response(encode_response(0, bytes(MAX_OUTPUT))).stdout) == MAX_OUTPUT
    with pytest.raises(FrameError):
        encode_response(0, bytes(MAX_OUTPUT + 1))


@pytest.mark.parametrize("code", [-1, 256])
def test_only_an_exit_code_is_sent(code: int) -> None:
    with pytest.raises(FrameError, match="exit code"):
        encode_response(code, b"")


def test_another_release_is_told_what_to_do() -> None:
    with pytest.raises(FrameError) as caught:
        request_size(header(0, 0, b"\0MULTUS\x09"))
    assert "install both" in caught.value.hint


@given(
    st.binary(max_size=80) | st.builds(lambda a, b, rest: header(a, b) + rest, *[st.integers(0, 90)] * 2, st.binary())
)
def test_arbitrary_bytes_give_a_frame_or_a_frame_error(data: bytes) -> None:
    for decode in (decode_request, decode_response):
        try:
            decode(data)
        except FrameError:
            continue


@given(
    env=st.dictionaries(NAMES, TEXT, max_size=3),
    conf=st.binary(max_size=20),
    at=st.integers(0, 200),
    byte=st.integers(0, 255),
)
def test_a_damaged_request_that_passes_is_one_that_could_be_sent(
    env: dict[str, str], conf: bytes, at: int, byte: int
) -> None:
    data = bytearray(encode_request(env, conf))
    data[at % len(data)] = byte
    try:
        frame = decode_request(bytes(data))
    except FrameError:
        return
    again = decode_request(encode_request(frame.env, frame.conf))
    assert again == frame
