"""Where a call's time went, as multusd tells on its socket: fetched, and drawn as bars."""

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Final
from urllib.parse import urlencode

import msgspec

from multus.cli import output
from multus.cli.asking import Client
from multus.cli.ready import AskError
from multus.timeline import Span, Timeline

_WIDE: Final = 40  # characters of the longest bar
_WAITED: Final = 0.0001  # seconds; a shorter wait is not shown
_NETWORK: Final = ("network", "removal")


def fetch(path: Path, command: str, container_id: str, ifname: str) -> Timeline:
    """The newest of a container's calls, from the daemon on the socket at `path`.

    :raises AskError: nobody answers, or the daemon keeps no such call.
    """
    for each in reversed(kept(path, container_id)):
        if each.command == command and each.ifname == ifname:
            return each
    raise AskError(
        f"multusd keeps no {command} of container {container_id} on {ifname}",
        hint="it keeps the last calls only, and none of before its start",
    )


def kept(path: Path, container_id: str = "", *, timeout: float = 10.0) -> list[Timeline]:
    """The calls that the daemon keeps, of one container or of all, oldest first.

    :raises AskError: nobody answers within `timeout` seconds, or not with timelines.
    """
    client = Client(path, timeout)
    try:
        client.request("GET", f"/timelines?{urlencode({'container': container_id})}")
        answer = client.getresponse()
        body = answer.read()
    except (OSError, http.client.HTTPException) as error:
        raise AskError(f"{path}: {error}", hint="is multusd running, and is this its socketDir?") from None
    finally:
        client.close()
    if answer.status != 200:
        raise AskError(f"{path}: this multusd keeps no timelines ({answer.status})", hint="it is an older release")
    try:
        return msgspec.json.decode(body, type=list[Timeline])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise AskError(f"{path}: its timelines cannot be read: {error}", hint="it is another release") from None


def show(timeline: Timeline, *, whole: float | None = None) -> None:
    """Draw it. `whole` is how long the caller waited, in seconds: the plugin binary and the socket come on top."""
    took = timeline.seconds
    output.heading(f"{timeline.command} {timeline.pod or timeline.container_id}: {timeline.outcome}")
    rows = [(label, _ms(span.begin), _ms(span.end - span.begin), _bar(span, took)) for label, span in _rows(timeline)]
    output.table(("PHASE", "FROM ms", "TOOK ms", ""), [*rows, ("all of it", _ms(0), _ms(took), f"|{'=' * _WIDE}|")])
    if whole is not None:
        output.note(f"the caller waited {whole * 1000:.1f} ms: {max(whole - took, 0) * 1000:.1f} ms outside multusd")


def _rows(timeline: Timeline) -> Iterator[tuple[str, Span]]:
    """The call's own phases as they began; below each network its own."""
    inside = [each for each in timeline.spans if each.ifname and each.phase not in _NETWORK]
    for span in timeline.spans:
        if not span.ifname:
            yield span.phase, span
        elif span.phase in _NETWORK:
            yield f"{span.ifname} {span.what}", span
            for each in (*_waits(inside, span), *_parts(inside, span)):
                yield f"{'    ' if each.phase == 'ipam' else '  '}{each.phase} {each.what}".rstrip(), each


def _waits(inside: list[Span], network: Span) -> list[Span]:
    """What it waited for before it began."""
    return [
        each
        for each in inside
        if each.ifname == network.ifname and each.phase in ("after", "turn") and each.end - each.begin >= _WAITED
    ]


def _parts(inside: list[Span], network: Span) -> list[Span]:
    return [
        each
        for each in inside
        if each.ifname == network.ifname and network.begin <= each.begin and each.end <= network.end
    ]


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.1f}".rjust(7)


def _bar(span: Span, whole: float) -> str:
    """Where in the call it was; what is shorter than a character is a dot."""
    if whole <= 0:
        return ""
    first = min(int(span.begin / whole * _WIDE), _WIDE - 1)
    size = min(round((span.end - span.begin) / whole * _WIDE), _WIDE - first)
    return f"|{' ' * first}{'=' * size if size else '.'}".ljust(_WIDE + 1) + "|"
