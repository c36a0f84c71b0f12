"""Every enabled region of the account, asked at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

from gpuops.errors import GpuopsError
from gpuops.providers.aws.clients import Clients
from gpuops.providers.aws.refusals import translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client

_Answer = TypeVar("_Answer")


def ask_all(clients: Clients, home: str, ask: Callable[[EC2Client, str], _Answer]) -> dict[str, _Answer | GpuopsError]:
    """What each region answers, or how it failed. Raises what the region `home` fails with when it has to list them."""
    with translated("list the regions", region=home):
        regions = [region["RegionName"] for region in clients.ec2(home).describe_regions()["Regions"]]
    futures: dict[str, Future[_Answer]] = {}
    with ThreadPoolExecutor(max_workers=max(1, len(regions))) as pool:
        for region in regions:  # clients are made here, in one thread, while the first ones are asked already
            futures[region] = pool.submit(ask, clients.ec2(region), region)
    answers: dict[str, _Answer | GpuopsError] = {}
    for region, future in futures.items():
        try:
            answers[region] = future.result()
        except GpuopsError as error:
            answers[region] = error
    return answers
