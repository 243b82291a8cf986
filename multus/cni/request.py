"""What a runtime asks of us: the command, the CNI_* environment, and what a GC must keep.

Source: CNI specification 1.1, section 2, and libcni's pkg/skel. The environment comes from whoever runs the shim;
identifiers in it become file names, so each is checked here, once. Its CNI_ARGS are read in `multus.cni.args`.
"""

import re
from collections.abc import Callable, Mapping
from enum import StrEnum

import msgspec

from multus.cni import document
from multus.cni.args import Pairs, PodRef, delegate_args, encode_args, invalid, parse_args, pod_ref
from multus.cni.document import DocumentError
from multus.cni.errors import CNIError, Code

__all__ = [
    "Command",
    "PodRef",
    "Request",
    "ValidAttachment",
    "check_container_id",
    "check_ifname",
    "delegate_args",
    "encode_args",
    "parse_args",
    "parse_request",
    "pod_ref",
    "valid_attachments",
]

MAX_CONF = 4 * 1024 * 1024
MAX_VALUE = 128 * 1024  # Linux' MAX_ARG_STRLEN: no environment variable can be longer
MAX_CONTAINER_ID = 128
MAX_IFNAME = 15  # IFNAMSIZ without the NUL

_CONTAINER_ID = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9_.\-]*")
_NONCE = re.compile(r"[a-zA-Z0-9_\-]{1,64}")
_IFNAME_REFUSED = re.compile(r"[/:\s\x00-\x1f\x7f]")


class Command(StrEnum):
    """CNI_COMMAND."""

    ADD = "ADD"
    DEL = "DEL"
    CHECK = "CHECK"
    STATUS = "STATUS"
    GC = "GC"
    VERSION = "VERSION"


class ValidAttachment(msgspec.Struct, frozen=True, kw_only=True):
    """An attachment that a GC must keep."""

    container_id: str = msgspec.field(name="containerID")
    ifname: str


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One CNI call. What the command does not use is empty, whatever the environment has. `conf` is stdin as is."""

    command: Command
    container_id: str = ""
    netns: str = ""
    ifname: str = "eth0"
    args: Pairs = ()
    path: tuple[str, ...] = ()
    conf: bytes
    nonce: str = ""


def check_container_id(value: str) -> str:
    """What is wrong with a container id, "" when nothing is."""
    if len(value) > MAX_CONTAINER_ID:
        return f"it is longer than {MAX_CONTAINER_ID} characters"
    if not _CONTAINER_ID.fullmatch(value):
        return "it must have letters, digits, underscores, dots and hyphens only, the first a letter or digit"
    return ""


def check_ifname(value: str) -> str:
    """What is wrong with an interface name, "" when nothing is. The kernel's own rules (dev_valid_name)."""
    if not value or len(value.encode(errors="replace")) > MAX_IFNAME:
        return f"it must have 1 to {MAX_IFNAME} bytes"
    if value in (".", "..") or _IFNAME_REFUSED.search(value):
        return "it must not be . or .. nor have a slash, a colon, a space or a control character"
    return ""


def _check_netns(value: str) -> str:
    return "" if value.startswith("/") and len(value) < 4096 else "it must be an absolute path"


def _check_nonce(value: str) -> str:
    return "" if _NONCE.fullmatch(value) else "it must have up to 64 letters, digits, underscores and hyphens"


def _anything(value: str) -> str:
    return ""


_CONTAINER = frozenset({Command.ADD, Command.DEL, Command.CHECK})
_CALLS = _CONTAINER | {Command.STATUS, Command.GC}
_NONE: frozenset[Command] = frozenset()


class _Variable(msgspec.Struct, frozen=True):
    """An environment variable: who must have it, who may, and what its value must be."""

    name: str
    required: frozenset[Command]
    optional: frozenset[Command]
    check: Callable[[str], str]


_VARIABLES = (
    _Variable("CNI_CONTAINERID", _CONTAINER, _NONE, check_container_id),
    _Variable("CNI_NETNS", _CONTAINER - {Command.DEL}, frozenset({Command.DEL}), _check_netns),
    _Variable("CNI_IFNAME", _CONTAINER, _NONE, check_ifname),
    _Variable("CNI_ARGS", _NONE, _CONTAINER, _anything),
    _Variable("CNI_PATH", _NONE, _CALLS, _anything),  # the specification wants it, but the daemon has a path of its own
    _Variable("MULTUS_NONCE", _NONE, _CALLS, _check_nonce),  # the shim's name for this call
)


def parse_request(env: Mapping[str, str], conf: bytes) -> Request:
    """The call that environment and stdin make. Raises CNIError INVALID_ENVIRONMENT; the conf is only measured here.

    A DEL passes with CNI_ARGS that an ADD would refuse: the runtime repeats it until it succeeds, and that ADD made
    nothing. It then names no pod.
    """
    command = _command(env.get("CNI_COMMAND", ""))
    values: dict[str, str] = {}
    missing: list[str] = []
    for variable in _VARIABLES:
        value = env.get(variable.name, "")
        if not value:
            if command in variable.required:
                missing.append(variable.name)
        elif command in variable.required | variable.optional:
            _check(variable, value)
            values[variable.name] = value
    if missing:
        raise invalid(f"{command} without {', '.join(missing)}", "the runtime must set them in the environment")
    if len(conf) > MAX_CONF:
        raise CNIError(Code.INVALID_NETWORK_CONFIG, f"{len(conf)} bytes on stdin", hint=f"{MAX_CONF} at most")
    return Request(
        command=command,
        container_id=values.get("CNI_CONTAINERID", ""),
        netns=values.get("CNI_NETNS", ""),
        ifname=values.get("CNI_IFNAME", "eth0"),
        args=_args(values.get("CNI_ARGS", ""), command),
        path=tuple(part for part in values.get("CNI_PATH", "").split(":") if part),
        conf=conf,
        nonce=values.get("MULTUS_NONCE", ""),
    )


def valid_attachments(conf: bytes) -> tuple[ValidAttachment, ...] | None:
    """What the runtime wants kept on GC; None when the configuration does not say, and so nothing may be called stale.

    The specification's key, else the one that libcni writes beside it. null is an empty list: it is what libcni writes
    for a runtime without any containers, such as CRI-O after a reboot. Raises CNIError DECODING_FAILURE.
    """
    keys = ("cni.dev/valid-attachments", "cni.dev/attachments")
    try:
        top = document.decode(conf)
        for key in keys:
            raw = document.member(top, key)
            if raw is not None:
                return document.value(raw, tuple[ValidAttachment, ...])
    except DocumentError as error:
        raise CNIError(Code.DECODING_FAILURE, f"GC: cni.dev/valid-attachments: {error}") from None
    return () if any(document.spelled(top, key) for key in keys) else None


def _args(text: str, command: Command) -> Pairs:
    if command is not Command.DEL:
        return parse_args(text)
    pairs = parse_args(text, tolerant=True)
    try:
        pod_ref(pairs)
    except CNIError:
        return tuple((key, value) for key, value in pairs if not key.startswith("K8S_POD_"))
    return pairs


def _command(text: str) -> Command:
    try:
        return Command(text)
    except ValueError:
        if not text:
            raise invalid("CNI_COMMAND is missing", "this program is run by a container runtime") from None
        raise invalid(f"CNI_COMMAND is {text!r:.40}", f"one of {', '.join(Command)}") from None


def _check(variable: _Variable, value: str) -> None:
    if len(value) > MAX_VALUE:
        problem = f"it is longer than {MAX_VALUE} characters"
    elif not _encodes(value) or "\0" in value:
        problem = "it is not UTF-8, or has a NUL in it"
    else:
        problem = variable.check(value)
    if problem:
        raise invalid(f"{variable.name} is {value[:80]!a}", problem)


def _encodes(value: str) -> bool:
    """Not so for the surrogates that stand for other bytes in an environment: no log, journal or URL takes them."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
