"""The file by which a node's default network says that it can serve: upstream's readinessindicatorfile."""

import anyio

from multus.cni.errors import CNIError, Code

_WAIT, _POLL = 45.0, 1.0  # seconds, as in upstream


async def indicated(path: str) -> None:
    """Wait for the file; there is nothing to wait for when no path is set.

    :raises CNIError: it did not come in time.
    """
    with anyio.move_on_after(_WAIT):
        while not await _stands(path):  # noqa: ASYNC110 (a file of somebody else's)
            await anyio.sleep(_POLL)
        return
    raise CNIError(
        Code.TRY_AGAIN_LATER,
        f"still waiting for readinessindicatorfile {path} after {_WAIT:g} s",
        hint="have you checked that your default network is ready?",
    )


async def refuse_unindicated(path: str) -> None:
    """For a STATUS, which runtimes repeat every few seconds: "not yet" is an answer, and none to wait 45 s for.

    :raises CNIError: the file is not there.
    """
    if not await _stands(path):
        raise CNIError(
            Code.NOT_AVAILABLE,
            f"readinessindicatorfile {path} is not there",
            hint="have you checked that your default network is ready?",
        )


async def _stands(path: str) -> bool:
    return not path or await anyio.Path(path).exists()
