"""Client tokens: what makes RunInstances safe to send again. moto stores the token and launches a second machine."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from moto.ec2.exceptions import EC2ClientError

from gpuops.sandbox.places import zone_asked


class ClientTokens:
    """The launches that were answered, by the token they carried.

    A token counts within its region, or within its zone where the request names one (docs.aws.amazon.com, "Ensuring
    idempotency in Amazon EC2 API requests"): the same token with another zone launches another machine.
    """

    def __init__(self) -> None:
        self._launches: dict[tuple[str, str, str], tuple[str, Any]] = {}

    def reservation(self, request: Mapping[str, Any], backend: Any) -> Any | None:
        """The reservation that this request made before, or None where it's the first with its token.

        Raises IdempotentParameterMismatch where anything else in the request differs, and IdempotentInstanceTerminated
        where the machine is gone.
        """
        known = self._launches.get(_key(request, backend))
        if known is None:
            return None
        fingerprint, reservation = known
        if fingerprint != _fingerprint(request):
            raise EC2ClientError(
                "IdempotentParameterMismatch",
                "The client token you have provided is associated with a resource that was created with different "
                "parameters.",
            )
        if all(instance.state in ("shutting-down", "terminated") for instance in reservation.instances):
            raise EC2ClientError(
                "IdempotentInstanceTerminated",
                f"The instance of the client token {request['ClientToken']} has been terminated. Use another token.",
            )
        return reservation

    def remember(self, request: Mapping[str, Any], backend: Any, reservation: Any) -> None:
        self._launches[_key(request, backend)] = (_fingerprint(request), reservation)


def _key(request: Mapping[str, Any], backend: Any) -> tuple[str, str, str]:
    return (backend.region_name, zone_asked(request, backend) or "", request["ClientToken"])


def _fingerprint(request: Mapping[str, Any]) -> str:
    return json.dumps({name: value for name, value in request.items() if name != "DryRun"}, sort_keys=True, default=str)
