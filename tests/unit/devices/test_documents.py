"""Documents of devices that moved go; where there can be none, nobody looks."""

from collections.abc import Mapping
from pathlib import Path

import pytest

from devices import documents
from devices.documents import Documents
from devices.infofiles import remove_stale, write_info
from devices.inventory import VF
from devices.kubelet.allocate import Grant
from devices.pools import Member, Pools

pytestmark = pytest.mark.anyio

FIRST, SECOND, THIRD = "0000:03:01.0", "0000:03:01.1", "0000:03:01.2"
NET, DPDK = "intel.com/net", "intel.com/dpdk"


def pools(**resources: str) -> Pools:
    named = {"first": FIRST, "second": SECOND, "third": THIRD}
    return Pools(
        by_bdf={
            named[name]: Member(device=VF(bdf=named[name], pf="", index=0), resource=resource)
            for name, resource in resources.items()
        }
    )


class Folder:
    """Documents on disk, and how often the folder was listed."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = root
        self.looks = 0
        self.documents = Documents(root)
        self.documents.resources = {NET, DPDK}

        def counted(directory: Path, resources: set[str], members: Mapping[str, str], used: set[str]) -> int:
            self.looks += 1
            return remove_stale(directory, resources, members, used)

        monkeypatch.setattr(documents, "remove_stale", counted)

    def write(self, resource: str, *devices: str) -> None:
        for bdf in devices:
            write_info(self.root, resource, Grant(id=bdf))

    @property
    def names(self) -> list[str]:
        return sorted(path.name for path in self.root.glob("dp/*"))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Folder:
    return Folder(tmp_path, monkeypatch)


def name(resource: str, bdf: str) -> str:
    return f"{resource.replace('/', '-')}-{bdf}-device.json"


async def test_what_was_there_before(folder: Folder) -> None:
    folder.write(NET, FIRST, SECOND)
    await folder.documents.tidy(pools(first=NET), dict, [])
    assert folder.names == [name(NET, FIRST)]
    await folder.documents.tidy(pools(), dict, [FIRST])
    assert folder.names == []


async def test_a_device_without_documents_costs_no_look(folder: Folder) -> None:
    folder.write(NET, FIRST)
    await folder.documents.tidy(pools(first=NET, second=NET), dict, [])
    await folder.documents.tidy(pools(first=NET, second=DPDK), dict, [SECOND])
    assert (folder.looks, folder.names) == (1, [name(NET, FIRST)])
    await folder.documents.tidy(pools(first=NET), dict)  # everything may have moved
    assert folder.looks == 2


async def test_what_was_given_out_since(folder: Folder) -> None:
    await folder.documents.tidy(pools(first=NET), dict, [])
    folder.documents.expect(NET, [FIRST])
    folder.write(NET, FIRST)
    await folder.documents.tidy(pools(first=DPDK), lambda: {FIRST}, [FIRST])  # a pod uses it
    assert folder.names == [name(NET, FIRST)]
    await folder.documents.tidy(pools(first=DPDK), dict, [FIRST])
    assert folder.names == []


async def test_giving_out_that_failed_halfway(folder: Folder) -> None:
    await folder.documents.tidy(pools(first=NET), dict, [])
    folder.write(NET, FIRST)
    folder.documents.doubt()
    await folder.documents.tidy(pools(first=DPDK), dict, [FIRST])
    assert folder.names == []


async def test_a_folder_that_cannot_be_listed_is_tried_again(folder: Folder, caplog: pytest.LogCaptureFixture) -> None:
    (folder.root / "dp").write_text("a file")
    await folder.documents.tidy(pools(), dict, [])
    assert "stale device information stays" in caplog.text
    (folder.root / "dp").unlink()
    folder.write(NET, FIRST)
    await folder.documents.tidy(pools(), dict, [])
    assert folder.names == []
