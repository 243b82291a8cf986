"""From a NetworkAttachmentDefinition to the network configuration that it stands for."""

from multus.cni.conf import NetworkConf, parse_conf, refuse_recursion, with_name
from multus.kube.objects import NAD
from multus.networks.errors import NetworkError


def resolve_nad(nad: NAD, *, from_directory: NetworkConf | None = None) -> NetworkConf:
    """The configuration in the object or, when it has none, the one of that name that the conf directory holds.

    A configuration without a name gets the object's. One without a version keeps none: whoever runs it decides.

    :raises NetworkError: neither has a configuration, or the object's text cannot be text.
    :raises ConfError: the object's configuration cannot be used, or leads back to this program.
    """
    where = f"NetworkAttachmentDefinition {nad.namespace}/{nad.name}"
    if nad.config.strip():
        try:
            data = nad.config.encode()
        except UnicodeEncodeError:
            raise NetworkError(f"{where}: spec.config is not UTF-8", hint="it must be one JSON object") from None
        conf = parse_conf(data, where=where)
    elif from_directory is not None:
        conf = from_directory
    else:
        raise NetworkError(
            f'{where} has no spec.config, and no file of the conf directory has the name "{nad.name}"',
            hint="write the configuration into spec.config, or a .conf, .conflist or .json file with that name "
            "into the node's confDir",
        )
    if not conf.name:
        conf = with_name(conf, nad.name)
    refuse_recursion(conf)
    return conf
