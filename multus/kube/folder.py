"""The embedded cluster: a folder of YAML and JSON that holds the pods and NADs, for nodes without an API server.

What is asked for is looked up in the files as they are now, so whoever puts a file there and then attaches its pod need
not wait. A watch tells of broken files as soon as they are written. A file that cannot be read keeps what it last held.
Network-status and events go into `status/` beside the files.
"""

import logging
import os
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final, TypeVar

import anyio
import anyio.abc
import anyio.to_thread
import asyncinotify
import msgspec

from multus.files import FileError, read_small, remove, replace
from multus.kube.cluster import EventKind
from multus.kube.errors import ClusterError, NotFoundError, RefusedError, missing_nad, uid_mismatch
from multus.kube.events import Announcer, Event
from multus.kube.manifests import MAX_FILE, ManifestError, Manifests, parse_manifests
from multus.kube.objects import NAD, Pod
from multus.kube.requests import check_name

logger = logging.getLogger(__name__)

STATUS_DIRECTORY: Final = "status"
_ENDINGS: Final = (".yaml", ".yml", ".json")
_MAX_FILES: Final = 10_000
_MAX_STATUS: Final = 1 << 20
_MAX_EVENTS: Final = 1 << 20  # bytes of events.jsonl; the one before is kept beside it
_SETTLE: Final = 0.2  # seconds without news before the files are read: editors write in several steps
_LOOK_ANYWAY: Final = 5.0  # seconds between looks when nothing was told: links may lead to where no watch is
_YOUNG: Final = 50_000_000  # ns; a file changed since so short a time may change again without looking different

_Look = tuple[int, int, int]
_O = TypeVar("_O", Pod, NAD)


class _File(msgspec.Struct, frozen=True):
    look: _Look | None  # None: to be read again in any case
    holds: Manifests | None  # None: it could never be read
    complaint: str = ""


class FolderCluster:
    """Implements `Cluster` on `folder`. `node` names this node in events."""

    is_current = False  # each question is a look at the files

    def __init__(self, folder: Path, node: str = "") -> None:
        self._folder = folder
        self._status = folder / STATUS_DIRECTORY
        self._node = node
        self._lock = anyio.Lock()
        self._files: dict[Path, _File] = {}
        self._pods: dict[tuple[str, str], Pod] = {}
        self._nads: dict[tuple[str, str], NAD] = {}
        self._complaints: frozenset[str] = frozenset()  # those of the last look, which were told
        self._statuses: set[tuple[str, str]] = set()  # pods that may have a status to be removed with them
        self._announcer = Announcer(self._write_event, clock=time.monotonic, wall=time.time, pace=0.0)

    async def run(self, *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED) -> None:
        """Watch the folder and write events.

        :raises RefusedError: there is no such folder.
        """
        if not await anyio.to_thread.run_sync(self._folder.is_dir):
            raise RefusedError(
                f"the folder of manifests {self._folder} is not there", hint='create it, or correct "manifests"'
            )
        async with anyio.create_task_group() as group:
            group.start_soon(self._announcer.run, name="write events")
            with asyncinotify.Inotify() as watch:
                watched = self._watch(watch)
                if not watched:
                    logger.warning("%s is not watched but looked at every %g s", self._folder, _LOOK_ANYWAY)
                await self._look(forget=False)
                logger.info("%s holds %d pods and %d NADs", self._folder, len(self._pods), len(self._nads))
                task_status.started()
                while True:
                    with anyio.move_on_after(_LOOK_ANYWAY):
                        if watched:
                            watched = await _news(watch)
                        else:
                            await anyio.sleep_forever()
                    watched = watched or self._watch(watch)
                    await self._look(forget=True)

    async def pod(self, namespace: str, name: str, *, uid: str = "") -> Pod:
        """The pod as it is in the files now."""
        check_name(namespace, name, "pod")
        await self._look(forget=False)
        pod = self._pods.get((namespace, name))
        if pod is None:
            raise NotFoundError(f'pods "{name}" not found in namespace {namespace}', hint=f"put it into {self._folder}")
        if uid and pod.uid != uid and not pod.static:
            raise uid_mismatch(namespace, name, expected=uid, got=pod.uid)
        status = await anyio.to_thread.run_sync(self._read_status, pod)
        return pod if status is None else msgspec.structs.replace(pod, status=status)

    async def nad(self, namespace: str, name: str) -> NAD:
        """The NetworkAttachmentDefinition as it is in the files now."""
        check_name(namespace, name, "network-attachment-definition")
        await self._look(forget=False)
        nad = self._nads.get((namespace, name))
        if nad is None:
            raise missing_nad(namespace, name, hint=f"put it into {self._folder}")
        return nad

    async def set_network_status(self, pod: Pod, status: str) -> None:
        """Write `status/<namespace>_<name>.json`, unless that says so already or the pod is gone."""
        if not pod.name:
            return
        check_name(pod.namespace, pod.name, "pod")
        held = self._pods.get((pod.namespace, pod.name))
        if held is None or (pod.uid and held.uid != pod.uid):
            logger.info("pod %s/%s is gone: its network-status is not written", pod.namespace, pod.name)
            return
        try:
            await anyio.to_thread.run_sync(self._write_status, pod, status)
        except FileError as error:
            raise ClusterError(
                f"the network-status of {pod.namespace}/{pod.name}: {error.message}", hint=error.hint
            ) from None

    async def event(self, pod: Pod, *, kind: EventKind, reason: str, message: str) -> None:
        """Queue an event; `run` appends it to `status/events.jsonl`."""
        self._announcer.announce(pod, kind=kind, reason=reason, message=message)

    def _watch(self, watch: asyncinotify.Inotify) -> bool:
        mask = asyncinotify.Mask
        try:
            watch.add_watch(
                self._folder,
                mask.CLOSE_WRITE | mask.MOVED_FROM | mask.MOVED_TO | mask.CREATE | mask.DELETE | mask.ONLYDIR,
            )
        except OSError as error:  # the folder is gone for now, or the node has no more watches to give
            logger.debug("%s cannot be watched: %s", self._folder, error)
            return False
        return True

    async def _look(self, *, forget: bool) -> None:
        """Read what has changed; with `forget`, what was written about pods that are gone goes too."""
        async with self._lock:
            await anyio.to_thread.run_sync(self._scan, forget)

    def _scan(self, forget: bool) -> None:
        complaints: set[str] = set()
        pods: dict[tuple[str, str], Pod] = {}
        nads: dict[tuple[str, str], NAD] = {}
        try:
            files = {path: self._read(path, look) for path, look in self._candidates(complaints)}
        except OSError as error:
            self._tell({f"{self._folder} cannot be read, so what it last held stays: {error.strerror or error}"})
            return
        for path, file in files.items():
            complaints.update((file.complaint,) if file.complaint else ())
            if file.holds is not None:
                complaints.update(file.holds.warnings)
                complaints.update(_merge(pods, file.holds.pods, path), _merge(nads, file.holds.nads, path))
        self._tell(complaints)
        self._files, self._pods, self._nads = files, pods, nads
        if forget:
            # Only here, after a quiet moment: while an editor replaces a file, its pods are gone for an instant.
            for namespace, name in self._statuses - pods.keys():
                self._forget_status(namespace, name)
            self._statuses.clear()
        self._statuses |= pods.keys()

    def _tell(self, complaints: set[str]) -> None:
        """Log what was not complained about a moment ago."""
        for complaint in sorted(complaints - self._complaints):
            logger.warning("%s", complaint)
        self._complaints = frozenset(complaints)

    def _candidates(self, complaints: set[str]) -> Iterator[tuple[Path, _Look | None]]:
        """The folder's files by name, and how each looks."""
        now = time.time_ns()
        with os.scandir(self._folder) as entries:
            # Dots begin what editors and mounted volumes keep for themselves.
            names = sorted(each.name for each in entries if each.name.endswith(_ENDINGS) and each.name[0] != ".")
        if len(names) > _MAX_FILES:
            complaints.add(f"{self._folder} holds more than {_MAX_FILES} files: the others are left out")
        for name in names[:_MAX_FILES]:
            path = self._folder / name
            try:
                found = path.stat()
            except OSError:
                yield path, None
                continue
            young = abs(now - max(found.st_mtime_ns, found.st_ctime_ns)) < _YOUNG
            yield path, None if young else (found.st_mtime_ns, found.st_size, found.st_ino)

    def _read(self, path: Path, look: _Look | None) -> _File:
        old = self._files.get(path)
        if old is not None and look is not None and old.look == look:
            return old
        try:
            data = read_small(path, limit=MAX_FILE)
            return _File(look, parse_manifests(data, where=str(path), json=path.suffix == ".json"))
        except (FileError, ManifestError) as error:
            held = old.holds if old is not None else None
            stays = "nothing is taken from it" if held is None else "what it last held stays"
            return _File(look, held, f"{error}; {stays}")

    def _status_path(self, namespace: str, name: str) -> Path:
        return self._status / f"{namespace}_{name}.json"

    def _read_status(self, pod: Pod) -> str | None:
        try:
            return read_small(self._status_path(pod.namespace, pod.name), limit=_MAX_STATUS).decode().rstrip("\n")
        except (FileError, UnicodeDecodeError):
            return None

    def _write_status(self, pod: Pod, status: str) -> None:
        if self._read_status(pod) == status:
            return
        self._make_directory()
        replace(self._status_path(pod.namespace, pod.name), f"{status}\n".encode(), mode=0o644)

    def _forget_status(self, namespace: str, name: str) -> None:
        try:
            remove(self._status_path(namespace, name))
        except FileError as error:
            logger.warning("%s", error)

    def _make_directory(self) -> None:
        try:
            self._status.mkdir(mode=0o755, exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot create {self._status}: {error.strerror or error}") from None

    async def _write_event(self, event: Event) -> None:
        await anyio.to_thread.run_sync(self._append_event, event)

    def _append_event(self, event: Event) -> None:
        line = msgspec.json.encode(
            {
                "time": datetime.fromtimestamp(event.at, UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "type": event.kind,
                "reason": event.reason,
                "message": event.message,
                "namespace": event.namespace,
                "pod": event.name,
                "uid": event.uid,
                "node": self._node,
            }
        )
        path = self._status / "events.jsonl"
        self._make_directory()
        try:
            if path.exists() and path.stat().st_size + len(line) > _MAX_EVENTS:
                path.replace(path.with_name("events.1.jsonl"))
            with path.open("ab") as file:
                file.write(line + b"\n")
        except OSError as error:
            raise FileError(f"cannot write {path}: {error.strerror or error}") from None


def _merge(into: dict[tuple[str, str], _O], items: tuple[_O, ...], path: Path) -> Iterator[str]:
    """Take a file's objects; of two with one name, in two files, the later file's, with a complaint unless equal."""
    for item in items:
        key = item.namespace, item.name
        if into.setdefault(key, item) != item:
            what = f"{type(item).__name__} {item.namespace}/{item.name}"
            yield f"{path}: {what} is in another place too, and differs: this one is taken"
        into[key] = item


async def _news(watch: asyncinotify.Inotify) -> bool:
    """Wait for something to happen, and then until nothing has for a moment; False when the watch has ended."""
    event = await watch.get()
    ended = bool(event.mask & asyncinotify.Mask.IGNORED)
    with anyio.move_on_after(10 * _SETTLE):  # however busy the folder is
        quiet = False
        while not quiet:
            with anyio.move_on_after(_SETTLE) as moment:
                event = await watch.get()
                ended = ended or bool(event.mask & asyncinotify.Mask.IGNORED)
            quiet = moment.cancelled_caught
    return not ended
