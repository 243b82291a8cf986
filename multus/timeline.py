"""Where a call's time goes: what began and ended when, by the monotonic clock. The last calls are kept.

    with span("routes"): ...                      a phase of the call that runs, wherever it is
    with span("plugin", "macvlan", "net1"): ...   a phase of one of its networks

A span outside a recorded call costs a look at a context variable.
"""

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic, time
from typing import Final

import msgspec

from multus.cni.args import parse_args

_KEPT: Final = 64
_COMMANDS: Final = ("ADD", "DEL")

Observe = Callable[[str, str, float], None]
"""Told of each span of a call that ended: (command, phase, seconds)."""


class Span(msgspec.Struct, frozen=True, kw_only=True, gc=False):
    """A stretch of a call; `begin` and `end` in seconds from the call's begin.

    Phases of the call, with no `ifname`: queue, journal, resolve, plan, sandbox, routes, status, events.
    Of one network, by its `ifname`: after (it waits for others), turn (for a free slot), network or removal (all of it;
    `what` names it), and within these plugin and ipam (`what` is the type). A program runs its IPAM in its own span.
    """

    phase: str
    what: str = ""
    ifname: str = ""
    begin: float
    end: float


class Timeline(msgspec.Struct, frozen=True, kw_only=True):
    """One call: `began` in Unix time, `seconds` until its answer, `outcome` ok, error or cancelled."""

    command: str
    container_id: str
    ifname: str
    pod: str
    began: float
    seconds: float
    outcome: str
    spans: tuple[Span, ...]


class _Call:
    """A call that runs. Spans are kept as they end, in absolute times."""

    __slots__ = ("begin", "spans")

    def __init__(self, begin: float) -> None:
        self.begin = begin
        self.spans: list[tuple[str, str, str, float, float]] = []


_call: ContextVar[_Call | None] = ContextVar("call", default=None)
_received: ContextVar[float] = ContextVar("received", default=0.0)


def received() -> None:
    """A request's first bytes are there: what this task records begins now."""
    _received.set(monotonic())


def queued() -> None:
    """The call's turn has come: all of it until now was waiting."""
    call = _call.get()
    if call is not None:
        call.spans.append(("queue", "", "", call.begin, monotonic()))


def since(phase: str, begin: float, *, ifname: str = "") -> None:
    """Record a phase of the call that runs here, if there is one: from `begin`, by the monotonic clock, until now."""
    call = _call.get()
    if call is not None:
        call.spans.append((phase, "", ifname, begin, monotonic()))


class span:  # noqa: N801 (used as a word: with span(...))
    """Record the block as a phase of the call that runs here, if there is one."""

    __slots__ = ("_begin", "_call", "_ifname", "_phase", "_what")

    def __init__(self, phase: str, what: str = "", ifname: str = "") -> None:
        self._phase = phase
        self._what = what
        self._ifname = ifname

    def __enter__(self) -> None:
        self._call = _call.get()
        if self._call is not None:
            self._begin = monotonic()

    def __exit__(self, *_: object) -> None:
        if self._call is not None:
            self._call.spans.append((self._phase, self._what, self._ifname, self._begin, monotonic()))


class Timelines:
    """The last calls of a daemon, ADDs and DELs."""

    def __init__(self, *, observe: Observe | None = None) -> None:
        self._observe = observe
        self._kept: deque[Timeline] = deque(maxlen=_KEPT)

    @contextmanager
    def recording(self, env: Mapping[str, str]) -> Iterator[None]:
        """Record the block as the call that `env` (its CNI_* variables) asks for."""
        command = env.get("CNI_COMMAND", "")
        if command not in _COMMANDS:
            yield
            return
        now = monotonic()
        call = _Call(_received.get() or now)
        began = time() - (now - call.begin)
        before = _call.set(call)
        outcome = "cancelled"
        try:
            yield
            outcome = "ok"
        except Exception:
            outcome = "error"
            raise
        finally:
            _call.reset(before)
            seconds = monotonic() - call.begin
            self._kept.append(
                Timeline(
                    command=command,
                    container_id=env.get("CNI_CONTAINERID", ""),
                    ifname=env.get("CNI_IFNAME", ""),
                    pod=_pod(env.get("CNI_ARGS", "")),
                    began=began,
                    seconds=seconds,
                    outcome=outcome,
                    spans=_relative(call),
                )
            )
            if self._observe is not None:
                for phase, _, _, begin, end in call.spans:
                    self._observe(command, phase, end - begin)

    def encode(self, container_id: str = "") -> bytes:
        """Those kept, of one container or of all, oldest first, as a JSON array."""
        return msgspec.json.encode([each for each in self._kept if container_id in ("", each.container_id)])


def _relative(call: _Call) -> tuple[Span, ...]:
    spans = [
        Span(phase=phase, what=what, ifname=ifname, begin=begin - call.begin, end=end - call.begin)
        for phase, what, ifname, begin, end in call.spans
    ]
    return tuple(sorted(spans, key=lambda each: (each.begin, -each.end)))


def _pod(args: str) -> str:
    found = dict(parse_args(args, tolerant=True))
    name = found.get("K8S_POD_NAME")
    return f"{found.get('K8S_POD_NAMESPACE', '')}/{name}" if name else ""
