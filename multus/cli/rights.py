"""What the daemon's account may do in the cluster, asked of the API server itself: a look must not write anything."""

from collections.abc import Mapping
from typing import Final, TypeVar

import msgspec

from multus.cli.examine import Finding
from multus.kube import requests
from multus.kube.api import Api
from multus.kube.errors import ClusterError, NotFoundError
from multus.kube.requests import Request, forbidden

NODE_CLAIM: Final = "authentication.kubernetes.io/node-name"
"""Where the API server says which node a pod's token was issued for; Kubernetes 1.30 and newer."""

_ACCESS: Final = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
_SELF: Final = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
_PATIENCE: Final = 5.0  # seconds
_EXAMPLE: Final = ("default", "example")

T = TypeVar("T")


class _Access(msgspec.Struct):
    allowed: bool = False


class _Allowed(msgspec.Struct):
    status: _Access = msgspec.field(default_factory=_Access)


class _User(msgspec.Struct):
    username: str = ""
    extra: dict[str, list[str]] = {}


class _Identity(msgspec.Struct, rename="camel"):
    user_info: _User = msgspec.field(default_factory=_User)


class _Review(msgspec.Struct):
    status: _Identity = msgspec.field(default_factory=_Identity)


async def rights(api: Api, node: str) -> list[Finding]:
    """Every verb that the daemon needs, and whose token it has. `node` is the node's own name, "" when unknown."""
    try:
        return [*await _allowed(api, node), *await _known_as(api, node)]
    except ClusterError as error:
        return [Finding(level="wrong", what=error.message, advice=error.hint)]


def needed(node: str) -> list[tuple[Request, str]]:
    """What the daemon asks of an API server beside its lists, and what does not work without."""
    pods = requests.pods_on(node or _EXAMPLE[1])
    event = requests.post_event(*_EXAMPLE, uid="", node="", kind="", reason="", message="", now="", suffix="x")
    return [
        (
            requests.watch(pods, version="0", seconds=1),
            "pods are not known when their networks are wanted",
        ),
        (requests.get_pod(*_EXAMPLE), "a pod that is newer than the cache is not found"),
        (requests.watch(requests.all_nads(), version="0", seconds=1), "changed networks are not noticed"),
        (requests.get_nad(*_EXAMPLE), "a network that is newer than the cache is not found"),
        (requests.patch_status(*_EXAMPLE, uid="", status=""), "no pod is told its network-status"),
        (event, "nobody is told on the pod what failed"),
    ]


async def _allowed(api: Api, node: str) -> list[Finding]:
    found, good = [], []
    for request, otherwise in needed(node):
        resource, _, subresource = request.resource.partition("/")
        wanted = {"verb": request.verb, "group": request.group, "resource": resource, "subresource": subresource}
        body = {"kind": "SelfSubjectAccessReview", "spec": {"resourceAttributes": wanted}}
        answer = await _post(api, _ACCESS, "authorization.k8s.io/v1", body, _Allowed)
        what = f"{request.verb} {request.resource}"
        if answer.status.allowed:
            good.append(what)
        else:
            advice = f"{forbidden(request)}; kubectl apply -k of deploy/plain does"
            found.append(Finding(level="wrong", what=f"RBAC does not allow to {what}: {otherwise}", advice=advice))
    if good:
        found.insert(0, Finding(what=f"RBAC allows to {', '.join(good)}"))
    return found


async def _known_as(api: Api, node: str) -> list[Finding]:
    """Whose token this is: the admission policy lets a node's daemon write to that node's pods only."""
    body = {"kind": "SelfSubjectReview"}
    try:
        review = await _post(api, _SELF, "authentication.k8s.io/v1", body, _Review)
    except NotFoundError:
        return [Finding(level="note", what="this API server does not say whom it takes us for (it is before 1.28)")]
    user = review.status.user_info
    named = next(iter(user.extra.get(NODE_CLAIM, [])), "")
    if not user.username.startswith("system:serviceaccount:"):
        return [Finding(what=f"the API server takes us for {user.username}")]
    if not named:
        advice = "Kubernetes 1.30 and newer name it; on an older one leave deploy/base/policy.yaml out"
        what = f"the token of {user.username} names no node: the policy of deploy/ refuses whatever it writes"
        return [Finding(level="wrong", what=what, advice=advice)]
    if node and named != node:
        what = f'the token is for node {named}, "nodeName" is {node}: the policy of deploy/ refuses whatever it writes'
        return [Finding(level="wrong", what=what, advice=f'set "nodeName" to {named}, or leave it out')]
    return [Finding(what=f"the API server takes us for {user.username} of node {named}")]


async def _post(api: Api, path: str, version: str, body: Mapping[str, object], kind: type[T]) -> T:
    resource = path.rpartition("/")[2]
    sent = {"apiVersion": version, **body}
    request = Request(
        verb="create", resource=resource, group=version.partition("/")[0], method="POST", path=path, body=sent
    )
    try:
        return msgspec.json.decode(await api.read(request, within=_PATIENCE), type=kind)
    except msgspec.DecodeError as error:
        raise ClusterError(f"create {resource}: the answer makes no sense: {error}") from None
