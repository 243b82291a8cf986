"""Pods and NADs out of files, for the tools: read by the same parser as the embedded cluster's folder."""

from pathlib import Path
from typing import Final

import msgspec

from multus.files import FileError, read_small
from multus.kube.manifests import MAX_FILE, ManifestError, parse_manifests
from multus.kube.objects import NAD, Pod

_ENDINGS: Final = (".yaml", ".yml", ".json")


class Objects(msgspec.Struct, frozen=True, kw_only=True):
    """What was found; `problems` are sentences about what could not be read."""

    pods: tuple[Pod, ...] = ()
    nads: tuple[NAD, ...] = ()
    problems: tuple[str, ...] = ()


def read_objects(path: Path) -> Objects:
    """The objects of one file.

    :raises FileError: unreadable, or not YAML.
    """
    data = read_small(path, limit=MAX_FILE)
    try:
        found = parse_manifests(data, where=str(path), json=path.suffix == ".json")
    except ManifestError as error:
        raise FileError(f"cannot read {path}: {error}") from None
    return Objects(pods=found.pods, nads=found.nads, problems=found.warnings)


def read_folder(folder: Path) -> Objects:
    """The objects of every file in a folder; a file that cannot be read is one of the problems.

    :raises FileError: there is no such folder.
    """
    if not folder.is_dir():
        raise FileError(f"{folder} is not a directory", missing=True)
    pods: list[Pod] = []
    nads: list[NAD] = []
    problems: list[str] = []
    for path in sorted(path for path in folder.iterdir() if path.suffix in _ENDINGS and path.is_file()):
        try:
            found = read_objects(path)
        except FileError as error:
            problems.append(str(error))
            continue
        pods += found.pods
        nads += found.nads
        problems += found.problems
    return Objects(pods=tuple(pods), nads=tuple(nads), problems=tuple(problems))
