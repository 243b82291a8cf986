"""What the node holds for one container: the records that the journal keeps and the async core works on."""

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec


class State(StrEnum):
    """Where a sandbox is. Everything but ATTACHED is undone when the daemon starts."""

    ADDING = "adding"
    ATTACHED = "attached"
    DELETING = "deleting"


class Attachment(msgspec.Struct, frozen=True, kw_only=True):
    """One network of a sandbox, with all that a DEL needs when nothing else is left.

    `conf` is the exact network configuration that ran, `runtime` the capability arguments, `args` the CNI_ARGS pairs,
    `after` the positions it waited for, `result` the CNI 1.1.0 result or None before it was attached, `partial` what
    plugins had come to before the last one that began: all that is known of an ADD that was cut short.
    """

    position: int
    network: str
    ifname: str
    conf: bytes
    args: tuple[tuple[str, str], ...] = ()
    runtime: dict[str, Any] = {}
    device_id: str = ""
    resource: str = ""
    default: bool = False
    hotplug: bool = False
    after: tuple[int, ...] = ()
    device_info: str = ""
    result: bytes | None = None
    partial: bytes | None = None


class Sandbox(msgspec.Struct, frozen=True, kw_only=True):
    """One CNI attachment of the runtime: a container and the interface name it asked for (eth0)."""

    container_id: str
    ifname: str
    state: State
    netns: str
    netns_id: str
    boot_id: str
    pod_namespace: str
    pod_name: str
    pod_uid: str
    nonce: str = ""
    created: float = 0.0
    failures: int = 0
    result: bytes | None = None
    status: str | None = None
    attachments: tuple[Attachment, ...] = ()

    @property
    def key(self) -> tuple[str, str]:
        """What the journal knows it by."""
        return self.container_id, self.ifname

    def with_results(self, results: Mapping[int, bytes]) -> "Sandbox":
        """The same with results by position; an attachment that has none here keeps what it had."""
        attachments = tuple(
            msgspec.structs.replace(item, result=results.get(item.position, item.result)) for item in self.attachments
        )
        return msgspec.structs.replace(self, attachments=attachments)
