"""From a NetworkAttachmentDefinition to the network configuration that it stands for."""

from multus.cni.conf import NetworkConf, parse_conf, refuse_recursion, with_name
from multus.kube.objects import NAD
from multus.memo import ByIdentity
from multus.networks.errors import NetworkError


def resolve_nad(nad: NAD, *, from_directory: NetworkConf | None = None) -> NetworkConf:
    """The configuration in the object or, when it has none, the one of that name that the conf directory holds.

    A configuration without a name gets the object's. One without a version keeps none: whoever runs it decides.

    :raises NetworkError: neither has a configuration, or the object's text cannot be text.
    :raises ConfError: the object's configuration cannot be used, or leads back to this program.
    """
    if nad.config.strip():
        return _resolved(nad)
    if from_directory is not None:
        return _named(from_directory, nad)
    raise NetworkError(
        f'{_where(nad)} has no spec.config, and no file of the conf directory has the name "{nad.name}"',
        hint="write the configuration into spec.config, or a .conf, .conflist or .json file with that name "
        "into the node's confDir",
    )


@ByIdentity
def _resolved(nad: NAD) -> NetworkConf:
    where = _where(nad)
    try:
        data = nad.config.encode()
    except UnicodeEncodeError:
        raise NetworkError(f"{where}: spec.config is not UTF-8", hint="it must be one JSON object") from None
    return _named(parse_conf(data, where=where), nad)


def _where(nad: NAD) -> str:
    return f"NetworkAttachmentDefinition {nad.namespace}/{nad.name}"


def _named(conf: NetworkConf, nad: NAD) -> NetworkConf:
    if not conf.name:
        conf = with_name(conf, nad.name)
    refuse_recursion(conf)
    return conf
