"""The daemon's parts know one another as they should."""

import json
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from multus.reload import Reloader
from multus.wiring import wire

pytestmark = pytest.mark.anyio


async def test_one_binder_changes_the_drivers_of_vfs_for_networks_and_policies(tmp_path: Path) -> None:
    """It has a lock for each VF: two of them would work on one VF at a time."""
    for name in ("manifests", "policies"):
        (tmp_path / name).mkdir()
    settings = {
        "clusterNetwork": "x",
        "cniDir": str(tmp_path / "state"),
        "manifests": str(tmp_path / "manifests"),
        "policies": str(tmp_path / "policies"),
        "deviceInfoDir": str(tmp_path / "devinfo"),
    }
    path = tmp_path / "daemon-config.json"
    path.write_text(json.dumps(settings))
    (tmp_path / "state").mkdir()
    async with AsyncExitStack() as stack:
        parts = await wire(Reloader(path, node_name="n"), stack, env={})
        assert parts.policies is not None
        assert parts.policies._applier._drivers._binder is parts.binder  # type: ignore[attr-defined]
        sriov = parts.commands._chain._in_process["sriov"]
        assert sriov._binder is parts.binder  # type: ignore[attr-defined]
