"""Where the API server is and how to be let in: a kubeconfig, or what a pod is given. Read again when it changes.

kubernetes_asyncio does the reading. It is heavy, so it is imported in here and only when there is a cluster.
"""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import msgspec
import yaml

from multus.files import FileError, read_small
from multus.kube.errors import RefusedError
from multus.kube.library import load

_MAX_KUBECONFIG = 1 << 20
_EXEC_TIMEOUT = 30.0  # seconds for a credential plugin or an identity provider
_SERVICE_ACCOUNT: Final = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_REFERENCES: Final = ("certificate-authority", "client-certificate", "client-key", "tokenFile")

Fingerprint = tuple[tuple[str, int, int, int], ...]
"""Path, modification time, size and inode of each file; a replaced file or a moved symbolic link changes it."""


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """A kubernetes_asyncio Configuration, the files that it was made of, and how they looked just before."""

    configuration: Any
    files: tuple[str, ...]
    fingerprint: Fingerprint


def read_credentials(kubeconfig: str, *, service_account: Path = _SERVICE_ACCOUNT) -> Credentials:
    """Read a kubeconfig, or with "" what the kubelet gives to a pod. Blocks; runs a credential plugin if one is named.

    :raises RefusedError: unreadable, or not enough to reach an API server.
    """
    if kubeconfig:
        return _from_kubeconfig(Path(kubeconfig))
    return _in_cluster(service_account)


def fingerprint(files: tuple[str, ...]) -> Fingerprint:
    """How the files look now; one that is missing counts as well. Blocks."""
    return tuple(_look(path) for path in files)


def drop_temporary_files() -> None:
    """Remove the keys and certificates that the library took out of a kubeconfig into files, once they are loaded."""
    load("config.kube_config")._cleanup_temp_files()


def _look(path: str) -> tuple[str, int, int, int]:
    try:
        found = os.stat(path)  # noqa: PTH116 (follows the symbolic links that a mounted volume is made of)
    except OSError:
        return path, 0, -1, 0
    return path, found.st_mtime_ns, found.st_size, found.st_ino


def _from_kubeconfig(path: Path) -> Credentials:
    hint = f"check {path}: kubectl --kubeconfig {path} version must work"
    try:
        seen = fingerprint((str(path),))
        content = yaml.safe_load(read_small(path, limit=_MAX_KUBECONFIG))
        if not isinstance(content, dict):
            raise RefusedError(f"{path} is not a kubeconfig", hint=hint)
        others = tuple(sorted(set(_references(content, path.parent))))
        seen += fingerprint(others)
        configuration = _new_configuration()
        loader = load("config.kube_config").KubeConfigLoader(config_dict=content, config_base_path=str(path.parent))
        asyncio.run(asyncio.wait_for(loader.load_and_set(configuration), _EXEC_TIMEOUT))
    except (RefusedError, FileError) as error:
        raise RefusedError(error.message, hint=error.hint or hint) from None
    except TimeoutError:
        raise RefusedError(f"{path}: no credentials within {_EXEC_TIMEOUT:g} s", hint=hint) from None
    except Exception as error:  # whatever the library makes of a malformed file: it asserts, indexes and splits
        raise RefusedError(f"{path} cannot be used: {type(error).__name__}: {error}"[:500], hint=hint) from None
    _tidy(configuration)
    return Credentials(configuration=configuration, files=(str(path), *others), fingerprint=seen)


def _references(content: dict[str, Any], base: Path) -> Iterator[str]:
    """The files that a kubeconfig names."""
    for section, key in (("clusters", "cluster"), ("users", "user")):
        for entry in content.get(section) or ():
            body = entry.get(key) if isinstance(entry, dict) else None
            if isinstance(body, dict):
                yield from (str(base / body[name]) for name in _REFERENCES if isinstance(body.get(name), str))


def _in_cluster(directory: Path) -> Credentials:
    token, authority = str(directory / "token"), str(directory / "ca.crt")
    files = token, authority
    seen = fingerprint(files)
    configuration = _new_configuration()
    try:
        load("config.incluster_config").load_incluster_config(
            client_configuration=configuration,
            try_refresh_token=False,  # ours notices a rotated token by itself
            token_filename=token,
            cert_filename=authority,
        )
    except Exception as error:
        raise RefusedError(
            f"there is no API server to be reached from inside a pod: {error}",
            hint='set "kubeconfig" in the configuration, or run as a pod with a service account',
        ) from None
    _tidy(configuration)
    return Credentials(configuration=configuration, files=files, fingerprint=seen)


def _new_configuration() -> Any:
    # Calling the class would hand out a copy of a process-wide default.
    configuration = type.__call__(load("client.configuration").Configuration)
    # Python 3.13 turns on a strictness that authorities made by older kubeadm do not pass; Go has none.
    configuration.disable_strict_ssl_verification = True
    return configuration


def _tidy(configuration: Any) -> None:
    """A token file usually ends in a line break, which a header must not hold."""
    for name, value in configuration.api_key.items():
        configuration.api_key[name] = value.strip()
