"""Which API server the nodes ask: the light stand-in, or Kubernetes' own."""

from benchmarks.apiserver import ApiServer
from benchmarks.side import MakeServer, Server
from multus.cli.box import Box


def choose(kind: str) -> MakeServer:
    """What makes a "light" or a "real" API server on a box.

    :raises SystemExit: a real one cannot be had here; the message says why.
    """
    if kind == "light":
        return _light
    from benchmarks.kube import RealApiServer, absent

    reason = absent()
    if reason:
        raise SystemExit(f"--apiserver real: {reason}")
    return RealApiServer


def _light(box: Box) -> Server:
    return ApiServer(box.directory / "account", enter=box.enter)
