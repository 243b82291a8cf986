"""kubernetes_asyncio without its models.

Importing any part of that library imports all of it: 900 modules and 36 MiB for models of every kind of object, none of
which is used here. Its packages are set up empty instead, and the few modules that are wanted are imported into them.
"""

import importlib
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any, Final

_ROOT: Final = "kubernetes_asyncio"
_lock = threading.RLock()


def load(module: str) -> Any:
    """A module of the library, such as `load("client.rest")`. The first one takes a tenth of a second."""
    with _lock:
        if _ROOT not in sys.modules:
            _prepare()
        return importlib.import_module(f"{_ROOT}.{module}")


def _prepare() -> None:
    found = importlib.util.find_spec(_ROOT)
    if found is None or not found.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named {_ROOT!r}", name=_ROOT)
    where = list(found.submodule_search_locations)
    root = _package(_ROOT, where)
    client = _package(f"{_ROOT}.client", [f"{path}/client" for path in where])
    root.client = client  # type: ignore[attr-defined]
    configuration = importlib.import_module(f"{_ROOT}.client.configuration")
    client.Configuration = configuration.Configuration  # type: ignore[attr-defined]
    client.ApiClient = None  # type: ignore[attr-defined] # named by its config modules, in functions that nobody calls


def _package(name: str, path: list[str]) -> ModuleType:
    module = ModuleType(name)
    module.__path__ = path
    sys.modules[name] = module
    return module
