"""Devices of pools by hand: asked of the daemon where one runs, and else done here, on its journal."""

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TypeVar

import msgspec

from devices import pools
from devices.giving import Giver
from devices.ledger import Ledger, Memory, Store
from devices.linux.sysfs import Sysfs
from devices.pooled import Pooled
from multus.byhand import ByHand
from multus.byhand_asks import Ask, ByHandError, Given, Made, Operation
from multus.cli import asking, vf_uses
from multus.cli.places import Places, read_pools
from multus.device_ids import device_ids
from multus.files import FileError
from multus.journal import Journal, read_journal
from multus.numvfs import look
from multus.sandbox import Sandbox

T = TypeVar("T")


def create(where: Places, ask: Ask) -> Made:
    """Have a PF make VFs, by the daemon where one runs.

    :raises MultusError: it is refused. :raises DeviceError: likewise.
    """
    return _have_done(where, "create", ask, Made)


def carry_out(where: Places, operation: Operation, ask: Ask) -> Given:
    """Have devices given or taken back.

    :raises MultusError: it is refused. :raises DeviceError: likewise.
    """
    return _have_done(where, operation, ask, Given)


def _have_done(where: Places, operation: Operation, ask: Ask, kind: type[T]) -> T:
    answer = asking.ask(where.socket, operation, msgspec.json.encode(ask))
    if answer is not None:
        try:
            return msgspec.json.decode(answer, type=kind)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise ByHandError(f"what multusd on {where.socket} answers cannot be read: {error}") from None
    found: list[bytes] = []

    async def do() -> None:
        if ask.dry:
            source = Direct(where, Memory())
            await source.remember()
            found.append(await source.do(operation, ask))
            return
        directory = _directory(where.journal.parent)
        with _alone(directory):
            async with Journal.open(where.journal) as journal:
                source = Direct(where, journal.records)
                await source.load()
                found.append(await source.do(operation, ask))

    vf_uses.change(do)
    return msgspec.json.decode(found[0], type=kind)


class Direct(Pooled):
    """Pools without a daemon: of the hardware as it is at this moment, the configuration, and the journal."""

    def __init__(self, where: Places, store: Store) -> None:
        sysfs, info = Sysfs(where.sysfs), Path(where.settings.device_info_dir)
        self._ledger = Ledger(store)
        super().__init__(Giver(sysfs=sysfs, info=info, ledger=self._ledger, held=self._held))
        self._where = where
        self._sandboxes = read_journal(where.journal) if where.journal.exists() else []
        self._giver.inventory = look(sysfs)

    async def load(self) -> None:
        """Read what the store says was given out."""
        await self._ledger.load()

    async def remember(self) -> None:
        """Take what the journal says was given out, so that nothing of the journal is changed."""
        for each in vf_uses.allocations(self._where.journal):
            await self._ledger.give(each.owner, each.resource, each.devices, now=each.since)

    def make_pools(self) -> None:
        """Put the hardware into pools.

        :raises MultusError: the configuration cannot be used. :raises DeviceError: likewise.
        """
        self._giver.config = read_pools(self._where, self._giver.inventory)
        self._giver.pools = pools.assign(self._giver.inventory, self._giver.config)

    async def do(self, operation: Operation, ask: Ask) -> bytes:
        """As the daemon would; its answer."""
        kubelet = None if self._where.settings.manifests else Path(self._where.settings.kubelet_dir)
        hand = ByHand(self, self._attached, kubelet_dir=kubelet, sysfs=self._where.sysfs)
        if operation == "allocate":  # for the others, a pool may be gone
            self.make_pools()
        return await hand.answer(operation, msgspec.json.encode(ask))

    async def note(self, owner: str, resource: str, devices: Sequence[str]) -> None:
        """Have it in mind that `owner` has these."""
        await self._ledger.give(owner, resource, devices, now=0.0)

    def withholding(self, parents: Sequence[str], reason: str) -> AbstractAsyncContextManager[None]:
        """Nobody else gives anything out meanwhile."""
        return nullcontext()

    async def _attached(self) -> list[Sandbox]:
        return self._sandboxes

    async def _held(self) -> dict[str, str]:
        items = (item for sandbox in self._sandboxes for item in sandbox.attachments)
        return {bdf: item.resource for item in items for bdf in device_ids(item)}


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Nobody else works on the state directory in the block: a daemon that starts has read who has what.

    :raises ByHandError: somebody does. :raises FileError: it cannot be told.
    """
    try:
        descriptor = os.open(directory / "multusd.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise FileError(f"cannot use {directory}: {error.strerror or error}", hint="run as root") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ByHandError(
            f"a multusd holds {directory}, and does not answer yet", hint="try again; or is --socket-dir another?"
        ) from None
    finally:
        os.close(descriptor)


def _directory(path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise FileError(f"cannot make {path}: {error.strerror or error}") from None
    return path
