"""What EC2 costs: AWS's own answer where it gives one, kept for a day; else the table that comes with gpuops."""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING

from gpuops import durable
from gpuops.errors import GpuopsError, NotPermitted
from gpuops.machine import FORMAT
from gpuops.providers.aws import price_table
from gpuops.providers.aws.refusals import translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_pricing.client import PricingClient

_GOOD_FOR = timedelta(days=1)
_ASKED_AT_ONCE = 8
_WAITED_AT_MOST_S = 4.0  # a person waits for it, and the table is nearly as good
_UNPRICED = (
    "us-gov-",
    "cn-",
)  # partitions of their own, which the Pricing API of AWS's commercial regions doesn't know
# What has to be said so that one price is left of a type's dozens.
_LINUX_ON_DEMAND = {"operatingSystem": "Linux", "preInstalledSw": "NA", "tenancy": "Shared", "capacitystatus": "Used"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Price:
    """`source` says whose word it is and of when: "AWS, 2026-11-24" or "table of 2026-11"."""

    usd_per_hour: float
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Answer:
    """What AWS said; `usd_per_hour` None: that it has no price for this."""

    usd_per_hour: float | None
    asked: datetime


class Prices:
    """AWS's answers are kept in the file `path`, which may be lost, damaged or unwritable: then it is asked again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._read: dict[tuple[str, str], _Answer] | None = None

    def of(self, type_name: str, region: str) -> Price | None:
        """What is known without asking anybody; None: nothing is."""
        answer = self._answers().get((region, type_name))
        if answer and answer.usd_per_hour is not None:
            return Price(usd_per_hour=answer.usd_per_hour, source=f"AWS, {answer.asked.date()}")
        if region not in price_table.REGIONS or type_name not in price_table.USD_PER_HOUR:
            return None
        return Price(usd_per_hour=price_table.USD_PER_HOUR[type_name], source=f"table of {price_table.OF}")

    def known(self, type_name: str, region: str) -> float | None:
        """USD per hour on demand, without asking anybody; None where it isn't known."""
        price = self.of(type_name, region)
        return price.usd_per_hour if price else None

    def look_up(
        self,
        pricing: PricingClient,
        type_names: Iterable[str],
        region: str,
        *,
        now: datetime,
        within_s: float = _WAITED_AT_MOST_S,
    ) -> None:
        """Ask AWS for what it hasn't said within a day. Raises nothing: where it doesn't answer, the table stands."""
        if region.startswith(_UNPRICED):
            return
        known = self._answers()
        wanted = deque(name for name in type_names if not _is_fresh(known.get((region, name)), now))
        new: dict[tuple[str, str], _Answer] = {}

        def ask() -> None:
            with contextlib.suppress(IndexError):  # nothing is left to ask
                while True:
                    name = wanted.popleft()
                    try:
                        new[region, name] = _Answer(usd_per_hour=_asked(pricing, name, region), asked=now)
                    except GpuopsError:
                        wanted.clear()  # one refusal speaks for the rest

        # Not a pool: its threads would be waited for when the command ends.
        workers = [threading.Thread(target=ask, daemon=True) for _ in range(min(_ASKED_AT_ONCE, len(wanted)))]
        for worker in workers:
            worker.start()
        ends = time.monotonic() + within_s
        for worker in workers:
            worker.join(max(0.0, ends - time.monotonic()))
        if in_time := dict(new):
            self._read = known | in_time
            _write(self._path, self._read)

    def _answers(self) -> dict[tuple[str, str], _Answer]:
        if self._read is None:
            self._read = _stored(self._path)
        return self._read


def disk(disk_gb: int, disk_type: str, region: str) -> float | None:
    """USD per month, billed while the machine is stopped too; None where it isn't known."""
    if region not in price_table.REGIONS or disk_type not in price_table.DISK_USD_PER_GB_MONTH:
        return None
    return round(disk_gb * price_table.DISK_USD_PER_GB_MONTH[disk_type], 2)


def spot(ec2: EC2Client, type_names: Sequence[str], region: str, *, now: datetime) -> dict[str, float]:
    """USD per hour of each type as a spot machine, in the zone where that is cheapest now."""
    newest: dict[tuple[str, str], tuple[datetime, float]] = {}
    try:
        with translated("list the spot prices", region=region):
            pages = ec2.get_paginator("describe_spot_price_history").paginate(
                InstanceTypes=list(type_names),  # type: ignore[arg-type]
                ProductDescriptions=["Linux/UNIX"],
                StartTime=now,  # of each type and zone the price that holds at that time, and no history
            )
            entries = [entry for page in pages for entry in page["SpotPriceHistory"]]
    except NotPermitted:
        return {}
    for entry in entries:
        key = (str(entry["InstanceType"]), entry["AvailabilityZone"])
        newest[key] = max(newest.get(key, (entry["Timestamp"], 0.0)), (entry["Timestamp"], float(entry["SpotPrice"])))
    cheapest: dict[str, float] = {}
    for (type_name, _), (_, usd) in newest.items():
        cheapest[type_name] = min(usd, cheapest.get(type_name, math.inf))
    return cheapest


def _is_fresh(answer: _Answer | None, now: datetime) -> bool:
    return answer is not None and timedelta() <= now - answer.asked < _GOOD_FOR


def _asked(pricing: PricingClient, type_name: str, region: str) -> float | None:
    wanted = {"instanceType": type_name, "regionCode": region, **_LINUX_ON_DEMAND}
    with translated(f"say what a {type_name} costs"):
        answer = pricing.get_products(
            ServiceCode="AmazonEC2",
            Filters=[{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()],
        )
    return _dearest(answer["PriceList"])


def _dearest(products: Iterable[str]) -> float | None:
    """USD per hour; of several prices the highest, as what is in doubt counts against us."""
    try:
        found = [
            float(dimension["pricePerUnit"]["USD"])
            for product in products
            for term in json.loads(product)["terms"].get("OnDemand", {}).values()
            for dimension in term["priceDimensions"].values()
            if dimension["unit"] == "Hrs"
        ]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None  # not in the form that AWS documents
    return max((usd for usd in found if _is_price(usd)), default=None)


def _stored(path: Path) -> dict[tuple[str, str], _Answer]:
    """What the file has; nothing where it is missing, damaged or of a newer format."""
    try:
        stored = json.loads(path.read_bytes())
        if stored["format"] > FORMAT:
            return {}
        return {(entry["region"], entry["type"]): _answer(entry) for entry in stored["prices"]}
    except (OSError, LookupError, TypeError, ValueError, AttributeError):
        return {}


def _answer(entry: dict[str, object]) -> _Answer:
    """Raises `ValueError` or `TypeError` for what we would not have written."""
    asked, usd = datetime.fromisoformat(str(entry["asked"])), entry["usd_per_hour"]
    if asked.tzinfo is None or not (usd is None or (isinstance(usd, float) and _is_price(usd))):
        raise ValueError(f"not an answer: {entry!r}")
    return _Answer(usd_per_hour=usd, asked=asked)


def _write(path: Path, answers: dict[tuple[str, str], _Answer]) -> None:
    prices = [
        {"region": region, "type": name, "usd_per_hour": answer.usd_per_hour, "asked": answer.asked.isoformat()}
        for (region, name), answer in sorted(answers.items())
    ]
    try:
        durable.write(path, json.dumps({"format": FORMAT, "prices": prices}, indent=1).encode())
    except OSError:
        return  # it will be asked again


def _is_price(usd: float) -> bool:
    return 0 < usd < math.inf
