"""Starts pytest where that takes half a minute: plugins are not looked for, and the collector of garbage waits.

Plugins that are given as modules are not compiled anew, as pytest compiles those that it is told the names of.
"""

import gc
import importlib
import os
import sys

from tests.vm.guest.daemons import Spawner

if __name__ == "__main__":
    gc.disable()
    os.environ["PYTEST_DISABLE_PLUGIN_AUTOLOAD"] = "1"
    cluster = any(name in each for name in ("kubelet", "vfw") for each in sys.argv)
    Spawner.ready = Spawner(cluster=cluster)  # before pytest: a daemon has nothing of it
    pytest, *plugins = map(importlib.import_module, ("pytest", "anyio.pytest_plugin", "pytest_timeout"))
    sys.exit(pytest.main(sys.argv[1:], plugins=plugins))
