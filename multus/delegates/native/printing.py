"""What a plugin prints, to the last member."""

from multus.cni.result import DNS, Result, encode_result


def printed(result: Result, version: str) -> bytes:
    """The result in that version; the reference plugins print "dns" in any, empty or not.

    :raises CNIError: a version that is unknown.
    """
    body = encode_result(result, version)
    if result.dns == DNS() and version == "1.0.0":
        return body[:-1] + b',"dns":{}}'
    return body
