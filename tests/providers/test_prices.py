"""Prices: AWS's word where it gives it, for a day; the table of the package where it doesn't."""

from __future__ import annotations

import json
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from gpuops.providers.aws import prices
from gpuops.providers.aws.clients import Clients
from gpuops.providers.aws.prices import Prices
from tests.computers import Cloud, Computer

NOW = datetime(2026, 11, 24, 12, tzinfo=timezone.utc)
TABLE = prices.Price(usd_per_hour=0.526, source="table of 2026-11")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "home" / "prices.json"


@pytest.fixture
def pricing(the_cloud: Cloud) -> Any:
    return the_cloud.client("pricing", "us-east-1")


def asked(cloud: Cloud) -> int:
    return len(cloud.calls("GetProducts"))


def test_aws_is_believed_before_the_table_and_it_is_said_who_is(the_cloud: Cloud, pricing: Any, path: Path) -> None:
    known = Prices(path)
    assert known.of("g4dn.xlarge", "us-west-2") == TABLE
    known.look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW)
    price = known.of("g4dn.xlarge", "us-west-2")
    assert price
    assert price.source == "AWS, 2026-11-24"
    assert price.usd_per_hour == known.known("g4dn.xlarge", "us-west-2") != TABLE.usd_per_hour


def test_who_does_not_answer_is_not_asked_a_second_time(the_cloud: Cloud, computer: Computer, path: Path) -> None:
    """A person waits for four seconds at most, and what the SDK would ask again comes after that."""
    the_cloud.add_faults({"action": "GetProducts", "code": "InternalError", "status": 500, "times": -1})
    before, known = asked(the_cloud), Prices(path)
    known.look_up(Clients("us-west-2").pricing(), ["g4dn.xlarge"], "us-west-2", now=NOW)
    assert asked(the_cloud) - before == 1
    assert known.of("g4dn.xlarge", "us-west-2") == TABLE


def test_each_region_has_its_own_price_and_an_unknown_one_has_none(pricing: Any, path: Path) -> None:
    known = Prices(path)
    assert known.known("g4dn.xlarge", "eu-west-1") is None
    for region in ("eu-west-1", "us-west-2"):
        known.look_up(pricing, ["g4dn.xlarge"], region, now=NOW)
    assert None is not known.known("g4dn.xlarge", "eu-west-1") != known.known("g4dn.xlarge", "us-west-2")
    assert known.known("g4dn.2xlarge", "eu-west-1") is None


def test_a_refusal_leaves_the_table_and_one_speaks_for_all(the_cloud: Cloud, pricing: Any, path: Path) -> None:
    the_cloud.add_faults({"action": "GetProducts", "code": "AccessDeniedException", "times": -1})
    before, known = asked(the_cloud), Prices(path)
    known.look_up(pricing, [f"g{n}.xlarge" for n in range(40)] + ["g4dn.xlarge"], "us-west-2", now=NOW)
    assert known.of("g4dn.xlarge", "us-west-2") == TABLE
    assert asked(the_cloud) - before <= 16
    assert not path.exists()


def test_an_answer_that_takes_too_long_is_not_waited_for(the_cloud: Cloud, pricing: Any, path: Path) -> None:
    the_cloud.add_faults({"action": "GetProducts", "hang_s": 3.0})
    known, began = Prices(path), time.monotonic()
    known.look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW, within_s=0.2)
    assert time.monotonic() - began < 1.5
    assert known.of("g4dn.xlarge", "us-west-2") == TABLE


def test_an_answer_holds_for_a_day_on_this_computer(the_cloud: Cloud, pricing: Any, path: Path) -> None:
    Prices(path).look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW)
    before = asked(the_cloud)
    later = Prices(path)  # another command
    later.look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW + timedelta(hours=23))
    assert asked(the_cloud) == before
    later.look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW + timedelta(hours=24))
    assert asked(the_cloud) == before + 1
    price = Prices(path).of("g4dn.xlarge", "us-west-2")
    assert price
    assert price.source == "AWS, 2026-11-25"


def test_what_is_known_is_said_without_asking(the_cloud: Cloud, pricing: Any, path: Path) -> None:
    Prices(path).look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW)
    before = len(the_cloud.http("GET", "/gpuops/calls"))
    assert Prices(path).known("g4dn.xlarge", "us-west-2")
    assert len(the_cloud.http("GET", "/gpuops/calls")) == before


def test_a_type_that_aws_has_no_price_for_keeps_the_tables_and_is_not_asked_again(
    the_cloud: Cloud, pricing: Any, path: Path
) -> None:
    known = Prices(path)
    known.look_up(pricing, ["p3.2xlarge"], "us-west-2", now=NOW)
    before = asked(the_cloud)
    Prices(path).look_up(pricing, ["p3.2xlarge"], "us-west-2", now=NOW)
    assert asked(the_cloud) == before
    assert known.of("p3.2xlarge", "us-west-2") == prices.Price(usd_per_hour=3.06, source="table of 2026-11")


ENTRY = {"region": "us-west-2", "type": "g4dn.xlarge", "usd_per_hour": 9.9, "asked": NOW.isoformat()}


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"format": 1}',
        json.dumps({"format": 2, "prices": [ENTRY]}).encode(),
        json.dumps({"format": 1, "prices": ["junk"]}).encode(),
        json.dumps({"format": 1, "prices": [ENTRY | {"usd_per_hour": -1.0}]}).encode(),
        json.dumps({"format": 1, "prices": [ENTRY | {"usd_per_hour": float("nan")}]}).encode(),
        json.dumps({"format": 1, "prices": [ENTRY | {"usd_per_hour": "0.1"}]}).encode(),
        json.dumps({"format": 1, "prices": [ENTRY | {"asked": "today"}]}).encode(),
        json.dumps({"format": 1, "prices": [ENTRY | {"asked": "2026-11-24T12:00:00"}]}).encode(),
    ],
)
def test_a_file_that_is_not_what_we_write_is_as_none(pricing: Any, path: Path, stored: bytes) -> None:
    path.parent.mkdir()
    path.write_bytes(stored)
    assert Prices(path).of("g4dn.xlarge", "us-west-2") == TABLE
    Prices(path).look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW)
    assert Prices(path).of("g4dn.xlarge", "us-west-2") != TABLE


def test_what_we_write_is_read(path: Path) -> None:
    path.parent.mkdir()
    path.write_bytes(json.dumps({"format": 1, "prices": [ENTRY]}).encode())
    assert Prices(path).known("g4dn.xlarge", "us-west-2") == 9.9


def test_a_price_that_cannot_be_kept_is_used_all_the_same(pricing: Any, tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    known = Prices(tmp_path / "home" / "prices.json")
    known.look_up(pricing, ["g4dn.xlarge"], "us-west-2", now=NOW)
    assert known.of("g4dn.xlarge", "us-west-2") != TABLE


@pytest.mark.parametrize("region", ["us-gov-west-1", "cn-north-1"])
def test_partitions_that_the_pricing_api_does_not_know_are_not_asked_about(
    the_cloud: Cloud, pricing: Any, path: Path, region: str
) -> None:
    before, known = asked(the_cloud), Prices(path)
    known.look_up(pricing, ["g4dn.xlarge"], region, now=NOW)
    assert asked(the_cloud) == before
    assert known.known("g4dn.xlarge", region) is None


def test_a_disk_costs_by_the_gigabyte_and_what_is_not_known_is_none() -> None:
    assert prices.disk(100, "gp3", "us-west-2") == 8.0
    assert prices.disk(100, "gp2", "us-east-1") == 10.0
    assert prices.disk(100, "io2", "us-west-2") is None
    assert prices.disk(100, "gp3", "eu-west-1") is None
