"""Whose a process is, for messages that name who holds a device."""

from pathlib import Path

from dpdk.holders import Holder, PodName
from multus.errors import MultusError
from multus.journal import read_journal


def pod_names(journal: Path) -> PodName:
    """Names pods by their containers and uids, as the journal has them when it is asked. Blocks; never raises."""

    def pod_name(holder: Holder) -> str:
        if not holder.container and not holder.pod_uid:
            return ""
        try:
            sandboxes = read_journal(journal) if journal.exists() else []
        except MultusError:  # it is for a message
            return ""
        for each in sandboxes:
            if each.container_id == holder.container or (each.pod_uid and each.pod_uid == holder.pod_uid):
                return f"{each.pod_namespace}/{each.pod_name}"
        return ""

    return pod_name
