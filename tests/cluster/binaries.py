"""Kubernetes' own programs for the cluster lane: found, or built once from the Go module proxy and kept in a cache.

    python -m tests.cluster.binaries      build now what is missing, and say how long it took

MULTUS_CLUSTER_BIN names a folder with programs built elsewhere.
"""

import os
from typing import Final

from tests.go_programs import GoPrograms

KUBERNETES: Final = os.environ.get("MULTUS_KUBERNETES_VERSION", "v1.34.4")
_TOLD: Final = {"gitVersion": KUBERNETES, "gitMajor": "1", "gitMinor": KUBERNETES.split(".")[1]}

PROGRAMS: Final = GoPrograms(
    project="Kubernetes",
    module="k8s.io/kubernetes",
    version=KUBERNETES,
    packages=("cmd/kube-apiserver", "cmd/kube-controller-manager", "cmd/kube-scheduler", "cmd/kubelet", "cmd/kubectl"),
    shelf="multus-cluster",
    given_by="MULTUS_CLUSTER_BIN",
    variables={
        f"{package}.{key}": value
        for package in ("k8s.io/component-base/version", "k8s.io/client-go/pkg/version")
        for key, value in _TOLD.items()
    },
)
cache = PROGRAMS.cache
directory = PROGRAMS.directory
missing = PROGRAMS.missing

if __name__ == "__main__":
    PROGRAMS.main()
