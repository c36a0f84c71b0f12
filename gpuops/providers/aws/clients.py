"""boto3 clients, from one session: profiles, single sign-on, roles and MFA work as in AWS's own tools."""

from __future__ import annotations

import getpass
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import boto3
import botocore.session
from botocore.config import Config
from botocore.loaders import Loader
from botocore.utils import JSONFileCache

from gpuops.errors import BadSetting, UnknownRegion
from gpuops.providers.aws import permissions
from gpuops.providers.aws.refusals import translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2_instance_connect.client import EC2InstanceConnectClient
    from mypy_boto3_pricing.client import PricingClient
    from mypy_boto3_service_quotas.client import ServiceQuotasClient
    from mypy_boto3_ssm.client import SSMClient
    from mypy_boto3_sts.client import STSClient

# Three silent attempts are half a minute: as long as a person waits for an answer to a question.
_PATIENT = Config(connect_timeout=5, read_timeout=8, retries={"mode": "standard", "total_max_attempts": 3})
# Launching and starting are tried once: InsufficientInstanceCapacity is a 500, which the SDK would silently send again
# to the zone that has just said that it is full. What to do about it is for the caller to decide.
_ONCE = Config(connect_timeout=5, read_timeout=30, retries={"total_max_attempts": 1})
# Prices are not waited for longer than that: see `prices.Prices.look_up`.
_BRIEF = Config(connect_timeout=2, read_timeout=3, retries={"total_max_attempts": 1})

_PRICING_REGION = "us-east-1"  # one of the few that have an endpoint of the Pricing API; it knows all regions' prices


class Clients:
    """One client per service and region, made when it is first asked for. In the region `home`, roles are assumed."""

    def __init__(self, home: str) -> None:
        with translated("say what it may be asked"):
            session = botocore.session.Session()
            session.set_config_variable("region", home)
            session.register_component("data_loader", _OurCalls())
            self._session = boto3.Session(botocore_session=session)
            # Where AWS's own command line keeps a role's credentials: a code of MFA is asked for once, not each time.
            provider = session.get_component("credential_provider").get_provider("assume-role")
            provider.cache = JSONFileCache(str(Path.home() / ".aws" / "cli" / "cache"))
        self._made: dict[tuple[str, str, Config], object] = {}

    def ec2(self, region: str, *, once: bool = False) -> EC2Client:
        """`once`: no retry by the SDK."""
        return self._client("ec2", region, _ONCE if once else _PATIENT)  # type: ignore[return-value]

    def ssm(self, region: str) -> SSMClient:
        return self._client("ssm", region)  # type: ignore[return-value]

    def sts(self, region: str) -> STSClient:
        return self._client("sts", region)  # type: ignore[return-value]

    def instance_connect(self, region: str) -> EC2InstanceConnectClient:
        return self._client("ec2-instance-connect", region)  # type: ignore[return-value]

    def quotas(self, region: str) -> ServiceQuotasClient:
        return self._client("service-quotas", region)  # type: ignore[return-value]

    def pricing(self) -> PricingClient:
        return self._client("pricing", _PRICING_REGION, _BRIEF)  # type: ignore[return-value]

    def check_region(self, region: str) -> None:
        """Raises `UnknownRegion`, naming the closest, for a region that no AWS partition has."""
        known = self.regions_of("ec2")
        if region not in known:
            raise UnknownRegion(region, known, next_step="Name one with --region, for example --region us-west-2.")

    def regions_of(self, service: str) -> list[str]:
        """Where AWS has the service, as far as boto3 knows, in all partitions."""
        return [
            name
            for partition in self._session.get_available_partitions()
            for name in self._session.get_available_regions(service, partition_name=partition)
        ]

    def partition(self, region: str) -> str:
        """ "aws", or "aws-cn", "aws-us-gov": what the names of resources begin with."""
        return self._session.get_partition_for_region(region)

    def _client(self, service: str, region: str, config: Config = _PATIENT) -> object:
        # Kept, and made only here: making a client is slow, and not safe in several threads at once.
        key = (service, region, config)
        if key not in self._made:
            try:
                with translated(f"answer in {region}", region=region):
                    if not self._made:
                        self._identify()
                    self._made[key] = self._session.client(  # type: ignore[call-overload]
                        service, region_name=region, config=config
                    )
            except ValueError as error:  # botocore's for an endpoint that is no URL
                raise BadSetting(
                    f"AWS can't be reached: {error}.", next_step="Check AWS_ENDPOINT_URL, or unset it."
                ) from error
        return self._made[key]

    def _identify(self) -> None:
        """Ask for a code of MFA, if one is needed, at a moment of our choosing and only where someone can answer."""
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)  # its fallback without a terminal: reading stdin
            if credentials := self._session.get_credentials():
                credentials.get_frozen_credentials()


class _OurCalls(Loader):
    """Of EC2's eight hundred operations, boto3 gets to know those that our policy permits.

    It makes a method of each for every region's client, which takes longer than all the rest of listing machines.
    """

    def load_service_model(self, service_name: str, type_name: str, api_version: str | None = None) -> Any:
        model = super().load_service_model(service_name, type_name, api_version)
        if (service_name, type_name) != ("ec2", "service-2"):
            return model
        names = {permissions.operation(action) for action in permissions.ACTIONS}
        ours = {name: called for name, called in model["operations"].items() if name in names}
        return {**model, "operations": ours}
