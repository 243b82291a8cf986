"""Policies for SR-IOV as they are on this node: a folder of YAML and JSON, and a list in the daemon's file."""

import logging
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import anyio
import anyio.abc
import msgspec

from devices.config import ConfigError
from devices.inventory import Inventory
from devices.policy import Policy, parse_policies
from devices.policy_config import KIND
from multus.errors import Fault, MultusError
from multus.files import read_small
from multus.kube.manifests import MAX_FILE, ManifestError, read_objects
from multus.settings import DaemonSettings

logger = logging.getLogger(__name__)

_SETTLE: Final = 0.2  # seconds that files are left to be written whole
_LOOK_ANYWAY: Final = 30.0  # seconds between looks when nothing was told: links may lead to where no watch is
_RETRY: Final = 2.0  # seconds before a folder that is not there is looked for again
_ENDINGS: Final = (".yaml", ".yml", ".json")
_MAX_FILES: Final = 1000
_CAPABLE: Final = "feature.node.kubernetes.io/network-sriov.capable"
_MACHINES: Final = {"x86_64": "amd64", "aarch64": "arm64"}


class PolicyError(MultusError):
    """Policies that are not taken; none of them is."""

    fault: ClassVar[Fault] = Fault.OPERATOR


def read_policies(folder: Path | None, inline: Sequence[bytes] = ()) -> tuple[Policy, ...]:
    """All of them, of every node; objects of other kinds in the folder are passed over. Blocks.

    One that is wrong refuses them all: without it, the others may mean something else.
    :raises MultusError: the folder or a file cannot be read, or a policy is wrong; it says which.
    """
    documents = list(_of_folder(folder)) if folder is not None else []
    documents += [msgspec.json.decode(each) for each in inline]
    where = " and ".join([*([str(folder)] if folder is not None else []), *(['"sriovPolicies"'] if inline else [])])
    try:
        return parse_policies(documents, where=where or "policies")
    except ConfigError as error:
        raise PolicyError(error.message, hint=error.hint) from None


async def follow(
    folder: Path, tell: Callable[[], None], *, task_status: anyio.abc.TaskStatus[None] = anyio.TASK_STATUS_IGNORED
) -> None:
    """Call `tell` when files of the folder may say something else, and now and then anyway."""
    from asyncinotify import Inotify, Mask

    mask = Mask.CLOSE_WRITE | Mask.MOVED_FROM | Mask.MOVED_TO | Mask.CREATE | Mask.DELETE | Mask.ONLYDIR
    with Inotify() as inotify:
        watched = started = False
        while True:
            if not watched:
                try:
                    inotify.add_watch(folder, mask)
                    watched = True
                except OSError as error:
                    logger.debug("%s cannot be watched: %s", folder, error)
            if not started:
                started = True
                task_status.started()
            tell()
            with anyio.move_on_after(_LOOK_ANYWAY if watched else _RETRY):
                event = await inotify.get()
                watched = not event.mask & Mask.IGNORED
                await anyio.sleep(_SETTLE)


def labels(settings: DaemonSettings, inventory: Inventory) -> dict[str, str]:
    """What is known of the node's labels: those that Kubernetes and its feature discovery would set, and nodeLabels."""
    machine = platform.machine()
    found = {"kubernetes.io/os": "linux", "kubernetes.io/arch": _MACHINES.get(machine, machine)}
    if settings.node_name:
        found["kubernetes.io/hostname"] = settings.node_name
    if any(pf.total_vfs for pf in inventory.pfs):
        found[_CAPABLE] = "true"
    return {**found, **settings.node_labels}


def for_node(policies: Sequence[Policy], known: Mapping[str, str]) -> tuple[Policy, ...]:
    """Those that are for a node with these labels."""
    return tuple(policy for policy in policies if policy.is_for(known))


def _of_folder(folder: Path) -> list[dict[str, Any]]:
    try:
        # Dots begin what editors and mounted volumes keep for themselves.
        names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_ENDINGS) and path.name[0] != ".")
    except OSError as error:
        raise PolicyError(
            f"cannot read the folder of policies {folder}: {error.strerror or error}",
            hint='create it, or correct "policies"',
        ) from None
    if len(names) > _MAX_FILES:
        raise PolicyError(f"{folder} holds more than {_MAX_FILES} files", hint="is it the right folder?")
    found: list[dict[str, Any]] = []
    for name in names:
        path = folder / name
        try:
            objects, problems = read_objects(
                read_small(path, limit=MAX_FILE), where=str(path), json=path.suffix == ".json"
            )
        except ManifestError as error:
            raise PolicyError(str(error)) from None
        if problems:
            raise PolicyError(problems[0])
        found += [each for each in objects if each.get("kind", KIND) == KIND]
    return found
