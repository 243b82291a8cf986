"""Running one plugin binary: its environment, its conf on stdin, its result from stdout, its failures in plain words.

Source: CNI specification 1.1, sections 2 and 4 ("Error"); libcni's pkg/invoke for where plugins are looked for and how
their errors read. What a plugin prints is as hostile as any other input.
"""

import errno
import logging
import signal
from collections.abc import Callable
from time import perf_counter
from typing import Final, TypeVar

import msgspec

from multus.cni import document
from multus.cni.args import Pairs, encode_args
from multus.cni.document import Document, DocumentError
from multus.cni.errors import CNIError, Code
from multus.cni.request import Command
from multus.cni.result import MAX_RESULT
from multus.delegates.exec import End, Outcome, StartError, execute

logger = logging.getLogger(__name__)

STANDARD_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where plugins find iptables and the like; the daemon's own PATH is that of its image."""

_GO: Final = {"GOMAXPROCS": "1"}
# Plugins are written in Go, whose runtime starts threads for each core before a plugin says a word: with one at work, a
# network's ADD and DEL take a quarter less CPU. A thread that waits in the kernel does not count.

MAX_TEXT: Final = 16 * 1024  # characters of a plugin's message that are passed on

_CONTAINER = frozenset({Command.ADD, Command.DEL, Command.CHECK})
_VERBS = {Command.ADD: "add", Command.DEL: "delete", Command.CHECK: "check", Command.STATUS: "status", Command.GC: "gc"}
_AGAIN = frozenset({errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.ETXTBSY})
_REFUSALS = {
    errno.EACCES: ("it is not executable", "chmod +x it, and check that its file system is not mounted noexec"),
    errno.ENOEXEC: ("it is no program for this machine", "a build for this architecture, or a script with a #! line"),
    errno.ENOENT: ("what it needs to start is missing", "the interpreter of its #! line, or its dynamic loader"),
    errno.ETXTBSY: ("it is being written all the time", "installers should rename a finished file into place"),
    errno.E2BIG: ("its environment is too long", "CNI_ARGS has 128 KiB at most"),
}

T = TypeVar("T")


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """One call of one plugin: `conf` is its stdin, `path` where it and those that it calls itself are looked for.

    `followed_by` are the types of the plugins that come after it in its network.
    """

    command: Command
    conf: bytes
    container_id: str = ""
    netns: str = ""
    ifname: str = ""
    args: Pairs = ()
    path: tuple[str, ...] = ()
    followed_by: tuple[str, ...] = ()

    def environment(self) -> dict[str, str]:
        """What the specification puts in a plugin's environment.

        :raises CNIError: the arguments cannot be written.
        """
        env = {"CNI_COMMAND": str(self.command), "CNI_PATH": ":".join(self.path)}
        if self.command in _CONTAINER:
            env |= {
                "CNI_CONTAINERID": self.container_id,
                "CNI_NETNS": self.netns,
                "CNI_IFNAME": self.ifname,
                "CNI_ARGS": encode_args(self.args),
            }
        return env


class PluginError(CNIError):
    """A plugin failed, or could not be run. Code, message and details are the plugin's own where it gave any."""

    def __init__(
        self, plugin: str, command: Command, code: int, message: str, details: str = "", hint: str = ""
    ) -> None:
        # The words of libcni, which people look for in their runtime's log.
        super().__init__(code, f'plugin type="{plugin}" failed ({_verb(command)}): {message}', details, hint=hint)
        self.plugin = plugin


class Runner:
    """Runs plugin binaries. `timeout` tells how many seconds one may take; `chroot` is their root, "" ours."""

    def __init__(self, *, timeout: Callable[[], float], chroot: str = "", env_path: str = STANDARD_PATH) -> None:
        self._timeout = timeout
        self._chroot = chroot
        self._env_path = env_path

    async def __call__(self, plugin: str, call: Call) -> bytes:
        """Run it; what it printed.

        :raises PluginError: it is missing or unfit, failed, printed too much, or took too long.
        :raises CNIError: the arguments cannot be written.
        """
        timeout = self._timeout()
        begin = perf_counter()
        try:
            outcome = await execute(
                plugin,
                search=[directory for directory in call.path if directory.startswith("/")],
                env={"PATH": self._env_path, **_GO, **call.environment()},
                data=call.conf,
                timeout=timeout,
                max_output=MAX_RESULT,
                root=self._chroot,
            )
        except StartError as error:
            raise self._refusal(plugin, call, error) from None
        took = (perf_counter() - begin) * 1000
        logger.debug("plugin %s: %s took %.1f ms: %s", plugin, call.command, took, _ending(outcome))
        if outcome.stderr:
            logger.debug("plugin %s: %s: stderr: %s", plugin, call.command, _text(outcome.stderr))
        if outcome.end is not End.EXITED:
            raise _ended(plugin, call.command, outcome, timeout)
        if outcome.status != 0:
            raise _failure(plugin, call.command, outcome)
        return outcome.stdout

    def _refusal(self, plugin: str, call: Call, error: StartError) -> PluginError:
        """Why it did not even start."""
        root = f" under {self._chroot}" if self._chroot else ""
        code, hint = Code.INVALID_NETWORK_CONFIG, ""
        if not error.path:
            message = f'failed to find plugin "{plugin}" in path [{" ".join(call.path)}]{root}'
            hint = "install it there, or set binDir to where it is"
        elif error.path == self._chroot:
            message = f"cannot make {error.path} the root directory: {error.message}"
            hint = "chrootDir is where the host's root directory is mounted"
        else:
            code = Code.TRY_AGAIN_LATER if error.code in _AGAIN else code
            reason, hint = _REFUSALS.get(error.code, (error.message, ""))
            message = f"cannot start {error.path}{root}: {reason}"
        return PluginError(plugin, call.command, code, message, hint=hint)


def _verb(command: Command) -> str:
    return _VERBS.get(command, command.lower())


def _ended(plugin: str, command: Command, outcome: Outcome, timeout: float) -> PluginError:
    if outcome.end is End.FLOODED:
        message, hint = f"it printed more than {MAX_RESULT} bytes and was killed", "a result is one small JSON object"
        return PluginError(plugin, command, Code.DECODING_FAILURE, message, document.quote(outcome.stdout), hint)
    message = f"it was killed because it had not ended after {timeout:g} s"
    hint = "delegateTimeout is how long a plugin may take"
    return PluginError(plugin, command, Code.TRY_AGAIN_LATER, message, _text(outcome.stderr), hint)


def _failure(plugin: str, command: Command, outcome: Outcome) -> PluginError:
    """The error that it printed, else whatever it said."""
    if not outcome.stdout.strip():
        said = _text(outcome.stderr)
        if outcome.status < 0:
            return PluginError(plugin, command, Code.INTERNAL, f"it died: {_ending(outcome)}", said)
        message = f"netplugin failed: {said}" if said else "netplugin failed with no error message"
        return PluginError(plugin, command, Code.INTERNAL, message, _ending(outcome))
    try:
        said_in_full = document.decode(outcome.stdout)
    except DocumentError as error:
        message = f"netplugin failed but error parsing its diagnostic message {document.quote(outcome.stdout)}: {error}"
        return PluginError(plugin, command, Code.INTERNAL, message, _text(outcome.stderr) or _ending(outcome))
    code = _member(said_in_full, "code", int, 0)
    message = _member(said_in_full, "msg", str, "") or f"it printed no message but {document.quote(outcome.stdout)}"
    details = _member(said_in_full, "details", str, "")
    known = code if 0 < code < 2**32 else Code.INTERNAL
    return PluginError(plugin, command, known, _short(message), _short(details or _text(outcome.stderr)))


def _member(said: Document, key: str, kind: type[T], otherwise: T) -> T:
    raw = document.member(said, key)
    if raw is None:
        return otherwise
    try:
        return document.value(raw, kind)
    except DocumentError:
        return otherwise


def _ending(outcome: Outcome) -> str:
    if outcome.status >= 0:
        return f"exit status {outcome.status}"
    try:
        return f"signal {signal.Signals(-outcome.status).name}"
    except ValueError:
        return f"signal {-outcome.status}"


def _text(data: bytes) -> str:
    return data.decode(errors="backslashreplace").strip()


def _short(text: str) -> str:
    return text if len(text) <= MAX_TEXT else f"{text[:MAX_TEXT]}... and {len(text) - MAX_TEXT} characters more"
