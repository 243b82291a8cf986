"""Whether a pod may use a network of another namespace: namespaceIsolation and globalNamespaces."""

from collections.abc import Sequence

from multus.networks.errors import NetworkError


def check_isolation(
    *, pod_namespace: str, target_namespace: str, enabled: bool, global_namespaces: Sequence[str]
) -> None:
    """Let pass what the configuration allows: the pod's own namespace, and the global ones.

    :raises NetworkError: for any other, when isolation is `enabled`.
    """
    if not enabled or target_namespace == pod_namespace or target_namespace in global_namespaces:
        return
    raise NetworkError(
        "GetNetworkDelegates: namespace isolation enabled, annotation violates permission, "
        f"pod is in namespace {pod_namespace} but refers to target namespace {target_namespace}",
        hint="use a network of the pod's own namespace; globalNamespaces lists those that are open to all",
    )
