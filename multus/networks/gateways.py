"""Which attachment has the default routes of a pod: the "default-route" of its network selections.

Source: Network Custom Resource Definition De-facto Standard, 4.1.2.1.9, and multus-cni's CheckGatewayConfig.
"""

from collections.abc import Sequence

import msgspec

from multus.networks.addresses import gateway_address
from multus.networks.errors import NetworkError


class GatewayDecision(msgspec.Struct, frozen=True, kw_only=True):
    """What happens to one attachment's default routes; as it stands without arguments: nothing.

    `keep_v4`: the default routes of IPv4 that its plugin made stay; otherwise they are removed. `gateways_v4`: default
    routes through these are added (one at most: there is no ECMP). Likewise for IPv6.
    """

    keep_v4: bool = True
    keep_v6: bool = True
    gateways_v4: tuple[str, ...] = ()
    gateways_v6: tuple[str, ...] = ()


def decide_gateways(requests: Sequence[tuple[str, ...] | None]) -> tuple[GatewayDecision, ...]:
    """One decision per request, in order; a request is a selection's "default-route", None when it has none.

    As soon as one attachment asks, the others lose their default routes of both families, and the one that asks has
    exactly those it asked for. An empty list chooses the attachment with the default routes that its network gives it:
    so says the standard ("explicitly select which attachment will receive the default route ... may be empty"), where
    upstream takes the chosen one's away too and leaves the pod without any. A gateway that another names goes first.

    :raises NetworkError: more than one gateway of a family, or what is no address of a gateway.
    """
    if all(request is None for request in requests):
        return tuple(GatewayDecision() for _ in requests)
    decisions = tuple(_decide(request or ()) for request in requests)
    asked_v4 = [gateway for decision in decisions for gateway in decision.gateways_v4]
    asked_v6 = [gateway for decision in decisions for gateway in decision.gateways_v6]
    for asked in (asked_v4, asked_v6):
        if len(asked) > 1:
            raise NetworkError(
                "multus does not support ECMP for default-route",
                hint=f"{', '.join(asked)[:200]} are asked for: one gateway of each family, for all networks of the pod",
            )
    own = GatewayDecision(keep_v4=not asked_v4, keep_v6=not asked_v6)
    return tuple(own if request == () else made for request, made in zip(requests, decisions, strict=True))


def _decide(request: Sequence[str]) -> GatewayDecision:
    gateways = [gateway_address(text) for text in request]
    return GatewayDecision(
        keep_v4=False,
        keep_v6=False,
        gateways_v4=tuple(gateway for gateway in gateways if ":" not in gateway),
        gateways_v6=tuple(gateway for gateway in gateways if ":" in gateway),
    )
