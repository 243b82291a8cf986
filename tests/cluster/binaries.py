"""Kubernetes' and Flannel's programs for the cluster lane: found, or built once from the Go module proxy and kept.

    python -m tests.cluster.binaries      build now what is missing, and say how long it took

MULTUS_CLUSTER_BIN names a folder with programs built elsewhere.
"""

import os
import sys
from pathlib import Path
from typing import Final

from tests.go_programs import GoPrograms, NoProgramsError

KUBERNETES: Final = os.environ.get("MULTUS_KUBERNETES_VERSION", "v1.34.4")
FLANNEL: Final = "v0.28.10"
_GIVEN_BY: Final = "MULTUS_CLUSTER_BIN"
_WITHOUT: Final = Path(__file__).with_name("without")
_CLOUD: Final = "github.com/tencentcloud/tencentcloud-sdk-go/tencentcloud"
_TOLD: Final = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1]}

_KUBERNETES: Final = GoPrograms(
    project="Kubernetes",
    module="k8s.io/kubernetes",
    version=KUBERNETES,
    packages=("cmd/kube-apiserver", "cmd/kube-controller-manager", "cmd/kube-scheduler", "cmd/kubelet", "cmd/kubectl"),
    shelf="multus-cluster",
    given_by=_GIVEN_BY,
    variables={
        f"{package}.{key}": value
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in _TOLD.items()
    },
)
# One of flanneld's many backends is for a cloud whose SDK not every module proxy serves: it is built without.
_FLANNELD: Final = GoPrograms(
    project="Flannel",
    module="github.com/flannel-io/flannel",
    version=FLANNEL,
    packages=("",),
    named={"flannel": "flanneld"},
    shelf="multus-cluster/flanneld",
    given_by=_GIVEN_BY,
    variables={"github.com/flannel-io/flannel/pkg/version.Version": FLANNEL},
    replaced={f"{_CLOUD}/{each}": _WITHOUT / each for each in ("common", "vpc")},
    cgo=True,
)
# The last release of the reference plugins that has it; the module that it moved to is not served everywhere.
_PLUGIN: Final = GoPrograms(
    project="Flannel's plugin",
    module="github.com/containernetworking/plugins",
    version="v0.9.1",
    packages=("plugins/meta/flannel",),
    shelf="multus-cluster/plugin",
    given_by=_GIVEN_BY,
)
_ALL: Final = (_KUBERNETES, _FLANNELD, _PLUGIN)

cache = _KUBERNETES.cache
directory = _KUBERNETES.directory


def flannel() -> list[Path]:
    """flanneld and its CNI plugin."""
    return [*_FLANNELD.programs(), *_PLUGIN.programs()]


def missing() -> list[str]:
    """The programs that are not there yet."""
    return [name for each in _ALL for name in each.missing()]


def main() -> int:
    """Build what is missing; 0 when all is there."""
    failed = 0
    for each in _ALL:
        try:
            took = each.build()
            print(f"{each.project} {each.version}: {'built in %.0f s' % took if took else 'there'}")
        except NoProgramsError as error:
            print(error, file=sys.stderr)
            failed = 1
    return failed


if __name__ == "__main__":
    sys.exit(main())
