"""Pods and NetworkAttachmentDefinitions out of YAML or JSON files as people write them for kubectl. Pure.

A file may be hostile. Its size, its depth and what its aliases expand to are bounded before anything is built, and only
the plain types of JSON are read: no tags, no dates, no numbers in base 60.
"""

import re
import uuid
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import yaml

from multus.errors import MultusError
from multus.kube.objects import NAD, Pod, decode_nad, decode_pod
from multus.kube.requests import check_name

MAX_FILE: Final = 4 << 20  # bytes; etcd takes no object above 1.5 MiB
_MAX_WEIGHT: Final = 16 << 20  # about the bytes of a document with its aliases written out
_MAX_DEPTH: Final = 64
_NODE: Final = 128  # what a node weighs beside its text
_PLAIN_TAGS: Final = frozenset({None, "!", "tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})
_MADE_UP: Final = uuid.UUID("9f2c1a52-6d0b-4f0a-8a59-0b7a0a3f6a11")  # namespace of the uids of pods without one
_NAD_GROUP: Final = "k8s.cni.cncf.io/"


class ManifestError(ValueError):
    """A file that cannot be read; says where."""


class Manifests(msgspec.Struct, frozen=True, kw_only=True):
    """What a file holds. `warnings` name objects that were left out, and why; `others` counts those of other kinds."""

    pods: tuple[Pod, ...] = ()
    nads: tuple[NAD, ...] = ()
    warnings: tuple[str, ...] = ()
    others: int = 0


def parse_manifests(data: bytes, *, where: str, json: bool = False) -> Manifests:
    """Read documents, and lists of objects in them. One bad object does not hide the others; broken syntax does.

    :raises ManifestError: not YAML (or JSON), or larger than is taken.
    """
    pods: list[Pod] = []
    nads: list[NAD] = []
    warnings: list[str] = []
    others = 0
    for body in _objects(_documents(data, where, json), where, warnings):
        try:
            found = _object(body)
        except (ValueError, MultusError) as error:
            warnings.append(f"{where}: {_title(body)} is left out: {error}")
            continue
        if isinstance(found, Pod):
            pods.append(found)
        elif isinstance(found, NAD):
            nads.append(found)
        else:
            others += 1
    return Manifests(pods=tuple(pods), nads=tuple(nads), warnings=tuple(warnings), others=others)


def read_objects(data: bytes, *, where: str, json: bool = False) -> tuple[list[dict[str, Any]], list[str]]:
    """The objects of any kind in documents and lists, and what was left out of them and why.

    :raises ManifestError: not YAML (or JSON), or larger than is taken.
    """
    warnings: list[str] = []
    return list(_objects(_documents(data, where, json), where, warnings)), warnings


def made_up_uid(namespace: str, name: str) -> str:
    """The uid of a pod whose manifest has none: always the same for one name."""
    return str(uuid.uuid5(_MADE_UP, f"{namespace}/{name}"))


def _object(body: dict[str, Any]) -> Pod | NAD | None:
    kind, version = body.get("kind"), body.get("apiVersion")
    if kind == "Pod" and version == "v1":
        pod = decode_pod(_encoded(body))
        check_name(pod.namespace, pod.name, "pod")
        return pod if pod.uid else msgspec.structs.replace(pod, uid=made_up_uid(pod.namespace, pod.name))
    if kind == "NetworkAttachmentDefinition" and isinstance(version, str) and version.startswith(_NAD_GROUP):
        nad = decode_nad(_encoded(body))
        check_name(nad.namespace, nad.name, "network-attachment-definition")
        return nad
    if not isinstance(kind, str) or not isinstance(version, str):
        raise ValueError("kind and apiVersion must be there, and be strings")
    return None


def _encoded(body: dict[str, Any]) -> bytes:
    """The object as an API server would give it back: in the default namespace when it names none."""
    metadata = body.get("metadata")
    if isinstance(metadata, dict) and not metadata.get("namespace"):
        body = {**body, "metadata": {**metadata, "namespace": "default"}}
    try:
        return msgspec.json.encode(body)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not an object of plain JSON types: {error}") from None


def _objects(documents: Iterator[object], where: str, warnings: list[str]) -> Iterator[dict[str, Any]]:
    for document in documents:
        if document is None:
            continue
        if not isinstance(document, dict):
            warnings.append(f"{where}: a document that is not an object is left out")
            continue
        kind = document.get("kind")
        if not (isinstance(kind, str) and kind.endswith("List")):
            yield document
            continue
        items = document.get("items")
        for item in items if isinstance(items, list) else ():
            if not isinstance(item, dict):
                warnings.append(f"{where}: an item of a {kind} that is not an object is left out")
                continue
            # The items of a PodList say neither kind nor version.
            said = {} if kind == "List" else {"kind": kind[: -len("List")], "apiVersion": document.get("apiVersion")}
            yield {**said, **item}


def _title(body: dict[str, Any]) -> str:
    metadata = body.get("metadata")
    name = metadata.get("name") if isinstance(metadata, dict) else None
    return f"{str(body.get('kind') or 'object')[:80]} {str(name or 'without a name')[:253]}"


def _documents(data: bytes, where: str, json: bool) -> Iterator[object]:
    if len(data) > MAX_FILE:
        raise ManifestError(f"{where} is larger than {MAX_FILE} bytes")
    try:
        if json:
            yield msgspec.json.decode(data)
            return
        text = data.decode("utf-8-sig")
        _weigh(text)
        yield from yaml.load_all(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ManifestError(f"{where}: {_one_line(error)}") from None


def _one_line(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None)
    if mark is not None and problem:
        return f"line {mark.line + 1}, column {mark.column + 1}: {problem}"
    return " ".join((str(error) or type(error).__name__).split())[:300]


class _Loader(yaml.CSafeLoader):
    """JSON's types, spelled as kubectl reads them, and merge keys."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, _pattern, _first in (
    ("bool", r"(?i:yes|no|on|off)|true|True|TRUE|false|False|FALSE", "tTfFyYnNoO"),
    ("null", r"~|null|Null|NULL|", "~nN\0"),
    ("int", r"[-+]?(?:0|[1-9][0-9]{0,17})", "-+0123456789"),
    ("float", r"[-+]?[0-9]{1,20}\.[0-9]{0,20}(?:[eE][-+]?[0-9]{1,3})?", "-+0123456789"),
    ("merge", r"<<", "<"),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), ["" if c == "\0" else c for c in _first]
    )


def _weigh(text: str) -> None:
    """Walk the syntax and refuse what would not be worth building.

    :raises ManifestError: too deep, too large once aliases are written out, or with a tag.
    """
    anchors: dict[str, int] = {}
    open_ones: list[tuple[str | None, int]] = []  # each open collection's anchor, and the total where it began
    total = 0
    for event in yaml.parse(text, _Loader):
        if isinstance(event, yaml.DocumentStartEvent):
            anchors.clear()
        elif isinstance(event, yaml.AliasEvent):
            if event.anchor not in anchors:
                raise _refusal(event, "an alias of something that is not there, or not ended, yet")
            total += anchors[event.anchor]
        elif isinstance(event, yaml.ScalarEvent | yaml.CollectionStartEvent):
            if event.tag not in _PLAIN_TAGS:
                raise _refusal(event, f"tags are not read here: {str(event.tag)[:80]}")
            before = total
            total += _NODE
            if isinstance(event, yaml.CollectionStartEvent):
                if len(open_ones) >= _MAX_DEPTH:
                    raise _refusal(event, f"nested more than {_MAX_DEPTH} deep")
                open_ones.append((event.anchor, before))
                if event.anchor:
                    anchors.pop(event.anchor, None)  # until it ends, nothing can refer to it
            else:
                total += len(event.value)
                if event.anchor:
                    anchors[event.anchor] = total - before
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = open_ones.pop()
            if anchor:
                anchors[anchor] = total - before
        if total > _MAX_WEIGHT:
            raise _refusal(event, f"weighs more than {_MAX_WEIGHT} bytes once its aliases are written out")


def _refusal(event: yaml.Event, why: str) -> ManifestError:
    line = event.start_mark.line + 1 if event.start_mark is not None else 0
    return ManifestError(f"line {line}: {why}")
