"""What can be had: instance types, where they are offered, and their price on the spot market."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta, timezone
from fnmatch import fnmatchcase
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.exceptions import EC2ClientError, InvalidInstanceTypeError
from moto.ec2.models.instance_types import INSTANCE_TYPE_OFFERINGS, INSTANCE_TYPES
from moto.ec2.responses import EC2Response

from gpuops.sandbox import places, prices

_TYPES_AT_MOST = 100
_AT_MOST = 1000
_SYSTEMS = {"Linux/UNIX": 1.0, "Windows": 1.4}
_HISTORY = timedelta(hours=24)  # EC2 goes back 90 days; a day is all that anybody here looks at


class Offerings(EC2Response):
    def describe_instance_types(self) -> ActionResult:
        # A type that the region doesn't offer doesn't exist there. The answer comes in pages of at most 100.
        unknown = [t for t in self._get_param("InstanceTypes", []) if not places.zones_offering(self.region, t)]
        if unknown:
            raise InvalidInstanceTypeError(unknown, error_type="InvalidInstanceType")
        found: Any = super().describe_instance_types().result
        here = [t for t in found["InstanceTypes"] if places.zones_offering(self.region, t["InstanceType"])]
        return self._page("InstanceTypes", here, at_most=_TYPES_AT_MOST)

    def describe_instance_type_offerings(self) -> ActionResult:
        # Values of filters may have wildcards, and the answer comes in pages.
        by_region = INSTANCE_TYPE_OFFERINGS[self._get_param("LocationType") or "region"]
        attributes = {"instance-type": "InstanceType", "location": "Location"}
        here = [o for o in by_region.get(self.region, ()) if self._passes(o, attributes)]
        return self._page("InstanceTypeOfferings", here, at_most=_AT_MOST)

    def describe_spot_price_history(self) -> ActionResult:
        # For each type, zone and system: its prices from StartTime to EndTime, newest first, and the one that held at
        # StartTime. moto has 0.00001 for everything.
        self.error_on_dryrun()
        now = datetime.now(timezone.utc)
        until = _utc(self._get_param("EndTime") or now)
        since = _utc(self._get_param("StartTime") or now - _HISTORY)
        systems = self._get_param("ProductDescriptions", []) or list(_SYSTEMS)
        attributes = {
            "instance-type": "InstanceType",
            "availability-zone": "AvailabilityZone",
            "product-description": "ProductDescription",
        }
        history = [
            {
                "InstanceType": name,
                "AvailabilityZone": zone,
                "ProductDescription": system,
                "SpotPrice": f"{prices.spot_usd(name, zone, at) * _SYSTEMS[system]:.6f}",
                "Timestamp": at,
            }
            for name, zone in self._spot_markets()
            for system in _SYSTEMS
            if system in systems or f"{system} (Amazon VPC)" in systems
            for at in _changes(since, until)
        ]
        return self._page("SpotPriceHistory", [h for h in history if self._passes(h, attributes)], at_most=_AT_MOST)

    def _spot_markets(self) -> Iterator[tuple[str, str]]:
        for name in self._get_param("InstanceTypes", []) or sorted(INSTANCE_TYPES):
            for zone in sorted(places.zones_offering(self.region, name)):
                is_on_spot = "spot" in INSTANCE_TYPES[name]["SupportedUsageClasses"]
                if is_on_spot and self._get_param("AvailabilityZone") in (None, zone):
                    yield name, zone

    def _passes(self, found: dict[str, Any], attributes: dict[str, str]) -> bool:
        for name, values in self._filters_from_querystring().items():
            if name not in attributes:
                raise EC2ClientError("InvalidParameterValue", f"The filter '{name}' is invalid")
            if not any(fnmatchcase(found[attributes[name]], value) for value in values):
                return False
        return True

    def _page(self, key: str, found: Sequence[Any], *, at_most: int) -> ActionResult:
        start, size = int(self._get_param("NextToken") or 0), int(self._get_param("MaxResults") or at_most)
        end = start + min(size, at_most)
        return ActionResult({key: found[start:end], "NextToken": str(end) if end < len(found) else None})


def _changes(since: datetime, until: datetime) -> Iterator[datetime]:
    """When prices changed, newest first; the last is at or before `since`."""
    step_s = prices.SPOT_PRICE_HOURS * 3600
    at = datetime.fromtimestamp(until.timestamp() // step_s * step_s, timezone.utc)
    while at > since:
        yield at
        at -= timedelta(seconds=step_s)
    yield at


def _utc(at: datetime) -> datetime:
    return at if at.tzinfo else at.replace(tzinfo=timezone.utc)
