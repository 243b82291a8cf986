"""The library without its models: what we use works, and the rest stays on the disk."""

import subprocess
import sys

import pytest

_PROGRAM = """
import sys
from multus.kube.library import load

for module in ("client.configuration", "client.rest", "client.exceptions", "config.kube_config",
               "config.incluster_config"):
    assert load(module).__name__ == f"kubernetes_asyncio.{module}"
configuration = load("client.configuration").Configuration
assert load("config.kube_config").Configuration is configuration
assert load("client.exceptions") is load("client.exceptions")
unused = ("kubernetes_asyncio.client.models", "kubernetes_asyncio.watch")
heavy = [name for name in sys.modules if name.startswith(unused)]
assert heavy == [], heavy
"""


def _run(program: str) -> str:
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    return done.stderr


def test_no_model_is_loaded() -> None:
    assert _run(_PROGRAM) == ""


def test_a_whole_library_that_is_there_already_is_used() -> None:
    program = "import kubernetes_asyncio.client as c\nfrom multus.kube.library import load\n"
    assert _run(program + "assert load('client').V1Pod is c.V1Pod\n") == ""


@pytest.mark.parametrize("module", ["client.no_such", "no_such"])
def test_what_is_not_there(module: str) -> None:
    assert "ModuleNotFoundError" in _run(f"from multus.kube.library import load\nload({module!r})\n")
