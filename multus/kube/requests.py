"""The few requests this node makes of an API server, as plain records: which verb, which path, which body.

Pure: the transport (`multus.kube.api`) sends them, tests read them. Names come from annotations and CNI arguments, so
each is checked here before it becomes part of a path.
"""

import re
from typing import Literal

import msgspec

from multus.kube.errors import InvalidNameError
from multus.kube.objects import NETWORK_STATUS

Method = Literal["GET", "PATCH", "POST"]

MERGE_PATCH = "application/merge-patch+json"
_JSON = "application/json"
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?")
_CORE = "/api/v1"
_NETWORKS = "/apis/k8s.cni.cncf.io/v1"
_DRA = "/apis/resource.k8s.io/v1"
_MAX_MESSAGE = 1024  # characters; the API server refuses events with longer messages
_MAX_REASON = 128  # the same for reasons


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """One request. `verb` and `resource` are RBAC's words; `about` is the object, for messages."""

    verb: Literal["get", "list", "watch", "patch", "create"]
    resource: str
    group: str = ""
    about: str = ""
    method: Method = "GET"
    path: str
    query: tuple[tuple[str, str], ...] = ()
    content_type: str = _JSON
    body: dict[str, object] | None = None


class Collection(msgspec.Struct, frozen=True, kw_only=True):
    """Objects of one kind that can be listed and watched, perhaps only some of them."""

    resource: str
    group: str = ""
    path: str
    field_selector: str = ""


def pods_on(node: str) -> Collection:
    """The pods bound to one node."""
    checked = _name(node, "node")
    return Collection(resource="pods", path=f"{_CORE}/pods", field_selector=f"spec.nodeName={checked}")


def all_nads() -> Collection:
    """Every NetworkAttachmentDefinition of the cluster."""
    return Collection(
        resource="network-attachment-definitions",
        group="k8s.cni.cncf.io",
        path=f"{_NETWORKS}/network-attachment-definitions",
    )


def list_page(what: Collection, *, limit: int, more: str = "", fresh: bool = False) -> Request:
    """One page of a list; `more` is the continue token of the page before.

    Without `fresh` the server may answer with whatever version it holds in memory (resourceVersion=0): a watch from
    there catches up, and a node's start costs etcd nothing. After a 410 only the present will do.
    """
    query = [("limit", str(limit))]
    if more:
        query.append(("continue", more))  # the token holds the version
    elif not fresh:
        query.append(("resourceVersion", "0"))
    return _collection(what, "list", query)


def watch(what: Collection, *, version: str, seconds: int) -> Request:
    """Changes after `version`; the server ends the stream by itself after `seconds`."""
    query = [("watch", "1"), ("allowWatchBookmarks", "true"), ("resourceVersion", version)]
    return _collection(what, "watch", [*query, ("timeoutSeconds", str(seconds))])


def get_pod(namespace: str, name: str) -> Request:
    """One pod, as of now."""
    return _object("get", "pods", f"{_CORE}/namespaces/{{}}/pods/{{}}", namespace, name)


def get_nad(namespace: str, name: str) -> Request:
    """One NetworkAttachmentDefinition, as of now."""
    kind = "network-attachment-definitions"
    return _object("get", kind, f"{_NETWORKS}/namespaces/{{}}/{kind}/{{}}", namespace, name, group="k8s.cni.cncf.io")


def patch_status(namespace: str, name: str, *, uid: str, status: str) -> Request:
    """Set the network-status annotation and nothing else.

    The uid in a patch is a precondition: for a pod that was replaced meanwhile the server answers 409 or 422.
    """
    metadata: dict[str, object] = {"annotations": {NETWORK_STATUS: status}}
    if uid:
        metadata["uid"] = uid
    path = f"{_CORE}/namespaces/{{}}/pods/{{}}/status"
    request = _object("patch", "pods/status", path, namespace, name)
    return msgspec.structs.replace(request, method="PATCH", content_type=MERGE_PATCH, body={"metadata": metadata})


def post_event(
    namespace: str, name: str, *, uid: str, node: str, kind: str, reason: str, message: str, now: str, suffix: str
) -> Request:
    """A v1 Event about a pod. `now` is RFC 3339; `suffix` makes the event's own name unique."""
    checked = _name(name, "pod")
    where = _label(namespace)
    body: dict[str, object] = {
        "apiVersion": "v1",
        "kind": "Event",
        # An event's name is a DNS subdomain of at most 253 characters too.
        "metadata": {"namespace": where, "name": f"{checked[: 252 - len(suffix)].rstrip('-.')}.{suffix}"},
        "involvedObject": {"apiVersion": "v1", "kind": "Pod", "namespace": where, "name": checked, "uid": uid},
        "type": kind,
        "reason": reason[:_MAX_REASON],
        "message": _shorten(message, _MAX_MESSAGE),
        "source": {"component": "multus", "host": node},
        "reportingComponent": "multus",
        "reportingInstance": node,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    path = f"{_CORE}/namespaces/{where}/events"
    return Request(verb="create", resource="events", about=f"{where}/{checked}", method="POST", path=path, body=body)


def get_claim(namespace: str, name: str) -> Request:
    """One ResourceClaim."""
    path = f"{_DRA}/namespaces/{{}}/resourceclaims/{{}}"
    return _object("get", "resourceclaims", path, namespace, name, group="resource.k8s.io")


def slices_of(driver: str, node: str) -> Collection:
    """ResourceSlices of one driver: this node's, or with node "" those bound to no node by name."""
    selector = f"spec.nodeName={_name(node, 'node') if node else ''},spec.driver={_name(driver, 'driver')}"
    return Collection(
        resource="resourceslices", group="resource.k8s.io", path=f"{_DRA}/resourceslices", field_selector=selector
    )


def _collection(what: Collection, verb: Literal["list", "watch"], query: list[tuple[str, str]]) -> Request:
    selected = [("fieldSelector", what.field_selector)] if what.field_selector else []
    return Request(verb=verb, resource=what.resource, group=what.group, path=what.path, query=(*selected, *query))


def _object(
    verb: Literal["get", "patch"], resource: str, path: str, namespace: str, name: str, *, group: str = ""
) -> Request:
    kind = resource.partition("/")[0].removesuffix("s")
    where, checked = _label(namespace), _name(name, kind)
    return Request(
        verb=verb, resource=resource, group=group, about=f"{where}/{checked}", path=path.format(where, checked)
    )


def check_name(namespace: str, name: str, kind: str) -> None:
    """Refuse what no object can be called.

    :raises InvalidNameError: with the name and the rule.
    """
    _label(namespace)
    _name(name, kind)


def _label(namespace: str) -> str:
    if not _LABEL.fullmatch(namespace):
        raise InvalidNameError(
            f"{namespace[:80]!r} is not a name that a namespace can have",
            hint="at most 63 lower-case letters, digits and '-'",
        )
    return namespace


def _name(name: str, kind: str) -> str:
    if not _SUBDOMAIN.fullmatch(name) or ".." in name:
        raise InvalidNameError(
            f"{name[:80]!r} is not a name that a {kind} can have",
            hint="at most 253 lower-case letters, digits, '-' and '.'",
        )
    return name


def _shorten(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"


def describe(request: Request) -> str:
    """What the request wants, in RBAC's words: `get pods default/web`."""
    resource = f"{request.resource}.{request.group}" if request.group else request.resource
    return f"{request.verb} {resource} {request.about}".rstrip()


def forbidden(request: Request) -> str:
    """What an administrator has to allow after a 403."""
    group = request.group or '""'
    return f"allow verb {request.verb} on resource {request.resource} (API group {group}) for the daemon's account"
