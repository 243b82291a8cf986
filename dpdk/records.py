"""What VFs were before they were bound, kept where a crash does not reach it."""

from typing import Final, Protocol

import msgspec

from dpdk.plans import BindRecord

KIND: Final = "dpdk"
"""The kind of these records in the store."""


class Store(Protocol):
    """Where records are kept; on disk when `save` returns."""

    async def save(self, key: str, kind: str, data: bytes) -> None: ...
    async def load(self, key: str, kind: str) -> bytes | None: ...
    async def forget(self, key: str, kind: str) -> None: ...
    async def all(self, kind: str) -> list[tuple[str, bytes]]: ...


class Records:
    """The records of bound VFs, by address."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def save(self, record: BindRecord) -> BindRecord:
        """Keep it, unless an earlier attempt was cut short: what was before that is what the VF has to become again."""
        earlier = await self.load(record.bdf)
        if earlier is not None and (earlier.boot_id, earlier.pf) == (record.boot_id, record.pf):
            known = {name: getattr(earlier, name) for name in ("driver", "override", "netdev", "address")}
            if earlier.mac:
                known["admin_mac"], known["mac"] = earlier.admin_mac, record.mac or earlier.mac
            record = msgspec.structs.replace(record, **known)
        await self._store.save(record.bdf, KIND, msgspec.json.encode(record))
        return record

    async def load(self, bdf: str) -> BindRecord | None:
        """None when there is none, or none that can be read."""
        return _decoded(await self._store.load(bdf, KIND))

    async def forget(self, bdf: str) -> None:
        """The VF is again what it was."""
        if await self._store.load(bdf, KIND) is not None:
            await self._store.forget(bdf, KIND)

    async def all(self) -> dict[str, BindRecord | None]:
        """Every one; None for one that cannot be read."""
        return {bdf: _decoded(data) for bdf, data in await self._store.all(KIND)}


def _decoded(data: bytes | None) -> BindRecord | None:
    try:
        return msgspec.json.decode(data, type=BindRecord) if data is not None else None
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
