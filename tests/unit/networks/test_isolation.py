"""Namespace isolation."""

import pytest

from multus.networks.errors import NetworkError
from multus.networks.isolation import check_isolation


@pytest.mark.parametrize(
    ("enabled", "target", "open_to_all"),
    [
        (True, "test", ()),
        (True, "test", ("default",)),
        (True, "default", ("default",)),
        (True, "kube-system", ("kube-system", "donkey-kong")),
        (False, "kube-system", ("default",)),
    ],
)
def test_allowed(enabled: bool, target: str, open_to_all: tuple[str, ...]) -> None:
    check_isolation(pod_namespace="test", target_namespace=target, enabled=enabled, global_namespaces=open_to_all)


@pytest.mark.parametrize(
    ("target", "open_to_all"),
    [("kube-system", ("default",)), ("default", ("foo", "bar")), ("kube", ("kube-system",)), ("", ("default",))],
)
def test_refused(target: str, open_to_all: tuple[str, ...]) -> None:
    with pytest.raises(NetworkError) as caught:
        check_isolation(pod_namespace="test", target_namespace=target, enabled=True, global_namespaces=open_to_all)
    assert caught.value.message == (
        "GetNetworkDelegates: namespace isolation enabled, annotation violates permission, "
        f"pod is in namespace test but refers to target namespace {target}"
    )


def test_global_namespaces_as_configured() -> None:
    """Facts of the configuration key: items are trimmed, and "default" is only there unasked when nothing is."""
    from multus.settings.netconf import overlaid

    def configured(value: str) -> tuple[str, ...]:
        conf = b'{"clusterNetwork":"x"%s}' % value.encode()
        return overlaid((), conf, drop_readiness=False).global_namespaces

    assert configured(',"globalNamespaces":" foo,bar ,default"') == ("foo", "bar", "default")
    assert configured("") == ("default",)
    assert configured(',"globalNamespaces":"foo"') == ("foo",)
