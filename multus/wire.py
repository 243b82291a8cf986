"""The frames that the shim and the daemon exchange, and that a spooled DEL is kept in: bytes in, structs out.

    request  = magic | u32 len(env) | u32 len(conf)   | env ("NAME=value" and NUL, each) | conf
    response = magic | u32 exit code | u32 len(stdout) | stdout

Numbers are big-endian. The magic begins with NUL and ends with the frame's version, so that one byte tells a
frame from HTTP, which upstream's shim speaks on the same socket.
"""

import struct
from collections.abc import Mapping
from typing import ClassVar

import msgspec

from multus.errors import Fault, MultusError

MAGIC = b"\x00MULTUS\x01"
MAX_ENV = 256 * 1024
MAX_CONF = 4 * 1024 * 1024
MAX_OUTPUT = 16 * 1024 * 1024

_HEADER = struct.Struct(">8sII")
HEADER_SIZE = _HEADER.size
MAX_REQUEST = HEADER_SIZE + MAX_ENV + MAX_CONF


class FrameError(MultusError):
    """The bytes are not the frame that they should be."""

    fault: ClassVar[Fault] = Fault.PEER


class RequestFrame(msgspec.Struct, frozen=True, kw_only=True):
    """One CNI call as the runtime made it: its CNI_* variables (and MULTUS_NONCE), and the conf's bytes."""

    env: dict[str, str]
    conf: bytes


class ResponseFrame(msgspec.Struct, frozen=True, kw_only=True):
    """What the shim does next: print `stdout`, exit with `code`."""

    code: int
    stdout: bytes


def request_size(header: bytes) -> tuple[int, int]:
    """Bytes of env and of conf that follow a request's header. FrameError when it is no header, or too much follows."""
    env_size, conf_size = _numbers(header)
    if env_size > MAX_ENV:
        raise FrameError(f"request frame: {env_size} bytes of environment, at most {MAX_ENV} are taken")
    if conf_size > MAX_CONF:
        raise FrameError(f"request frame: {conf_size} bytes of network configuration, at most {MAX_CONF} are taken")
    return env_size, conf_size


def decode_request(data: bytes) -> RequestFrame:
    """Exactly one request frame; FrameError for anything else, also for bytes after its end."""
    env_size, conf_size = request_size(data[:HEADER_SIZE])
    if len(data) != HEADER_SIZE + env_size + conf_size:
        raise FrameError(
            f"request frame: {len(data)} bytes where its header announces {HEADER_SIZE + env_size + conf_size}"
        )
    end = HEADER_SIZE + env_size
    return RequestFrame(env=_decode_env(data[HEADER_SIZE:end]), conf=bytes(data[end:]))


def encode_request(env: Mapping[str, str], conf: bytes) -> bytes:
    """A request frame. FrameError for what `decode_request` would not take."""
    for name, value in env.items():
        if not name or "=" in name or "\0" in name or "\0" in value:
            raise FrameError(f"request frame: {name!r} cannot be sent as an environment variable")
    try:
        block = b"".join(f"{name}={value}\0".encode() for name, value in env.items())
    except UnicodeEncodeError as error:
        raise FrameError(f"request frame: the environment is not text: {error.reason}") from None
    header = _HEADER.pack(MAGIC, min(len(block), 0xFFFFFFFF), min(len(conf), 0xFFFFFFFF))
    request_size(header)
    return header + block + conf


def encode_response(code: int, stdout: bytes) -> bytes:
    """A response frame; `code` is an exit code, 0 to 255."""
    if not 0 <= code <= 255:
        raise FrameError(f"response frame: {code} is not an exit code")
    if len(stdout) > MAX_OUTPUT:
        raise FrameError(f"response frame: {len(stdout)} bytes of output, at most {MAX_OUTPUT} are taken")
    return _HEADER.pack(MAGIC, code, len(stdout)) + stdout


def decode_response(data: bytes) -> ResponseFrame:
    """Exactly one response frame; FrameError for anything else."""
    code, size = _numbers(data[:HEADER_SIZE])
    if code > 255 or size > MAX_OUTPUT:
        raise FrameError(f"response frame: exit code {code} with {size} bytes of output is out of range")
    if len(data) != HEADER_SIZE + size:
        raise FrameError(f"response frame: {len(data)} bytes where its header announces {HEADER_SIZE + size}")
    return ResponseFrame(code=code, stdout=bytes(data[HEADER_SIZE:]))


def _numbers(header: bytes) -> tuple[int, int]:
    if len(header) != HEADER_SIZE:
        raise FrameError(f"frame: {len(header)} bytes where a header of {HEADER_SIZE} is due")
    magic, first, second = _HEADER.unpack(header)
    if magic != MAGIC:
        raise FrameError(
            f"frame: begins with {magic!r}", hint="shim and daemon come from different releases; install both anew"
        )
    return first, second


def _decode_env(block: bytes) -> dict[str, str]:
    if not block:
        return {}
    if block[-1] != 0:
        raise FrameError("request frame: the environment does not end with NUL")
    try:
        text = block[:-1].decode()
    except UnicodeDecodeError as error:
        raise FrameError(f"request frame: the environment is not UTF-8 at byte {error.start}") from None
    env: dict[str, str] = {}
    for entry in text.split("\0"):
        name, separator, value = entry.partition("=")
        if not (name and separator):
            raise FrameError(f"request frame: {entry[:64]!r} is no environment variable")
        # The first one counts, as for getenv(3): what the shim itself acted upon.
        env.setdefault(name, value)
    return env
