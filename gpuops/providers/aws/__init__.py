"""AWS EC2 through boto3, against whatever endpoint boto3 is pointed at."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from gpuops import host_keys
from gpuops.errors import GpuopsError, NothingOffered, ProviderError, UnknownType, VendorUnreachable
from gpuops.machine import FORMAT, Inventory, Machine, Offer, Prepared, State, Trait, Unanswered, Wish
from gpuops.providers.aws import catalogue, firewall, instances
from gpuops.providers.aws.clients import Clients, code_of, translated
from gpuops.render import render

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client

    from gpuops.settings import Settings

_ALIVE = [state.value for state in State if state.exists and state is not State.UNKNOWN]
_USER_DATA_LIMIT_BYTES = 16384  # EC2's limit, before base64


class Aws:
    """EC2. A machine is ours by its tags, which are set in the call that creates it."""

    name = "aws"
    traits = frozenset({Trait.STOP, Trait.TERMINATE, Trait.TAGS, Trait.USER_DATA, Trait.KNOWN_HOST_KEY})

    def __init__(self, settings: Settings) -> None:
        self._region = settings.region
        self._clients = Clients()
        self._clients.check_region(settings.region)
        self._account = ""

    def account(self) -> str:
        if not self._account:
            with translated("say whose credentials these are"):
                self._account = self._clients.sts(self._region).get_caller_identity()["Account"]
        return self._account

    def offers(self, wish: Wish) -> list[Offer]:
        for name in wish.types:
            if name not in catalogue.TYPES:
                raise UnknownType(name, catalogue.TYPES)
        wanted = [catalogue.TYPES[name] for name in wish.types] or list(catalogue.TYPES.values())
        ec2 = self._clients.ec2(wish.region)
        with translated("list the machine types on offer"):
            answer = ec2.describe_instance_type_offerings(
                LocationType="region", Filters=[{"Name": "instance-type", "Values": [t.name for t in wanted]}]
            )
        offered = {offering["InstanceType"] for offering in answer["InstanceTypeOfferings"]}
        images = {kind: self._image(ec2, kind, wish.region) for kind in {t.image for t in wanted if t.name in offered}}
        offers = [
            _offer(wish, gpu_type, image)
            for gpu_type in wanted
            if gpu_type.name in offered and (image := images[gpu_type.image]) is not None
        ]
        if not offers:
            raise NothingOffered(
                f"{wish.region} offers none of {', '.join(t.name for t in wanted)} with an image that fits.",
                next_step="Try another region: gpuops up --region us-east-1",
            )
        return offers

    def prepare(self, wish: Wish, offer: Offer, *, client_key: str) -> Prepared:
        ec2 = self._clients.ec2(offer.region)
        group_id = self._let_in(wish, offer.region, wish.ssh_port, client_key)
        with translated(f"describe the image {offer.image_id}"):
            image = ec2.describe_images(ImageIds=[offer.image_id])["Images"][0]
        host_key = host_keys.generate()
        user_data = render(
            "first-boot.yaml.j2",
            name=wish.name,
            format=FORMAT,
            deadline_s=max(1, round(wish.max_hours * 3600)),
            poweroff="systemctl poweroff",
            host_private_key=host_key.private_text,
            host_public_key=host_key.public_line,
            client_public_key=client_key,
        )
        if len(user_data.encode()) > _USER_DATA_LIMIT_BYTES:
            raise ProviderError(f"The first-boot data is over EC2's limit of {_USER_DATA_LIMIT_BYTES} bytes.")
        tags = instances.tags(wish, offer, host_key=host_key.public_line, created=datetime.now(timezone.utc))
        return Prepared(
            offer=offer,
            host_key=host_key.public_line,
            request={
                "ImageId": offer.image_id,
                "InstanceType": offer.type,
                "MinCount": 1,
                "MaxCount": 1,
                "SecurityGroupIds": [group_id],
                "InstanceInitiatedShutdownBehavior": "stop",
                "MetadataOptions": {
                    "HttpEndpoint": "enabled",
                    "HttpTokens": "required" if offer.imds_v2 else "optional",
                    "HttpPutResponseHopLimit": 1,
                },
                "BlockDeviceMappings": [
                    {
                        "DeviceName": image["RootDeviceName"],
                        "Ebs": {"VolumeSize": offer.disk_gb, "VolumeType": "gp3", "DeleteOnTermination": True},
                    }
                ],
                "TagSpecifications": [
                    {"ResourceType": kind, "Tags": [{"Key": key, "Value": value} for key, value in tags.items()]}
                    for kind in ("instance", "volume")
                ],
                "UserData": user_data,
            },
        )

    def admit(self, machine: Machine, wish: Wish, *, client_key: str) -> None:
        self._let_in(wish, machine.region, instances.ssh_port(machine.tags), client_key)

    def launch(self, prepared: Prepared, token: str) -> Machine:
        region = prepared.offer.region
        # A copy by way of JSON: boto3 changes the parameters that it is given (it encodes UserData in place).
        request = json.loads(json.dumps(prepared.request))
        with translated(f"launch a {prepared.offer.type} in {region}"):
            answer = self._clients.ec2(region, once=True).run_instances(**request, ClientToken=token)
        return instances.machine(answer["Instances"][0], region)

    def find(self, name: str) -> Inventory:
        return self._inventory({"Name": f"tag:{instances.NAME}", "Values": [name]})

    def machines(self) -> Inventory:
        return self._inventory({"Name": "tag-key", "Values": [instances.NAME]})

    def refresh(self, machine: Machine) -> Machine:
        try:
            with translated(f"describe {machine.id}"):
                answer = self._clients.ec2(machine.region).describe_instances(InstanceIds=[machine.id])
        except ProviderError as error:
            if code_of(error) != "InvalidInstanceID.NotFound":
                raise
            # Not proof that it is gone: a new instance is not yet seen everywhere (EC2 guide, Eventual consistency).
            return instances.unseen(machine)
        return instances.machine(answer["Reservations"][0]["Instances"][0], machine.region)

    def start(self, machine: Machine) -> None:
        with translated(f"start {machine.name} ({machine.id})"):
            self._clients.ec2(machine.region, once=True).start_instances(InstanceIds=[machine.id])

    def stop(self, machine: Machine) -> None:
        with translated(f"stop {machine.name} ({machine.id})"):
            self._clients.ec2(machine.region).stop_instances(InstanceIds=[machine.id])

    def terminate(self, machine: Machine) -> None:
        with translated(f"terminate {machine.name} ({machine.id})"):
            self._clients.ec2(machine.region).terminate_instances(InstanceIds=[machine.id])

    def _let_in(self, wish: Wish, region: str, port: int, client_key: str) -> str:
        return firewall.ensure(
            self._clients.ec2(region),
            region=region,
            computer=host_keys.fingerprint(client_key).removeprefix("SHA256:")[:12],
            block=firewall.admitted_block(wish.admit),
            port=port,
        )

    def _image(self, ec2: EC2Client, kind: catalogue.Image, region: str) -> tuple[str, str, int] | None:
        """(id, name, smallest disk in GB) of the region's image of that kind, or None where there is none."""
        if kind is catalogue.Image.FAST_AI_COMMUNITY:
            image_id = catalogue.COMMUNITY_AMIS.get(region)
        else:
            image_id = self._deep_learning_image(ec2, region)
        if image_id is None:
            return None
        try:
            with translated(f"describe the image {image_id}"):
                found = ec2.describe_images(ImageIds=[image_id])["Images"]
        except ProviderError as error:
            # By id this is definite, also for an image that is deprecated and so hidden from searches.
            if code_of(error).startswith("InvalidAMIID"):
                return None
            raise
        if not found:
            return None
        sizes = [mapping["Ebs"].get("VolumeSize", 0) for mapping in found[0]["BlockDeviceMappings"] if "Ebs" in mapping]
        return image_id, found[0].get("Name", image_id), max(sizes, default=0)

    def _deep_learning_image(self, ec2: EC2Client, region: str) -> str | None:
        for parameter in catalogue.DEEP_LEARNING_PARAMETERS:
            try:
                with translated("look up the newest Deep Learning AMI"):
                    return self._clients.ssm(region).get_parameter(Name=parameter)["Parameter"]["Value"]
            except ProviderError as error:
                if code_of(error) not in {"ParameterNotFound", "ParameterVersionNotFound"}:
                    raise
        with translated("look for the newest Deep Learning AMI"):
            found = ec2.describe_images(
                Owners=["amazon"], Filters=[{"Name": "name", "Values": [catalogue.DEEP_LEARNING_NAMES]}]
            )["Images"]
        newest = max(found, key=lambda image: image["CreationDate"], default=None)
        return newest["ImageId"] if newest else None

    def _inventory(self, which: dict[str, object]) -> Inventory:
        """Our machines in every enabled region, all asked at once; a region that fails is named, not left out."""
        with translated("list the regions"):
            regions = [r["RegionName"] for r in self._clients.ec2(self._region).describe_regions()["Regions"]]
        askers = [(region, self._asker(region, which)) for region in regions]
        with ThreadPoolExecutor(max_workers=max(1, len(askers))) as pool:
            answers = list(pool.map(lambda asker: asker[1](), askers))
        machines: list[Machine] = []
        unanswered: list[Unanswered] = []
        for region, answer in zip(regions, answers, strict=True):
            if isinstance(answer, GpuopsError):
                unanswered.append(Unanswered(place=f"{self.name}/{region}", reason=answer.what))
            else:
                machines += answer
        if len(unanswered) == len(regions):
            raise VendorUnreachable(
                f"No region of AWS answered; {unanswered[0].place} said: {unanswered[0].reason}",
                next_step="Try again in a minute.",
            )
        return Inventory(machines=tuple(sorted(machines, key=lambda m: (m.name, m.id))), unanswered=tuple(unanswered))

    def _asker(self, region: str, which: dict[str, object]) -> Callable[[], list[Machine] | GpuopsError]:
        ec2 = self._clients.ec2(region)  # made here, in one thread
        filters = [which, {"Name": "instance-state-name", "Values": _ALIVE}]

        def ask() -> list[Machine] | GpuopsError:
            try:
                with translated(f"list the machines in {region}"):
                    pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)  # type: ignore[arg-type]
                    found = [
                        i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]
                    ]
            except GpuopsError as error:
                return error
            return [instances.machine(instance, region) for instance in found]

        return ask


def _offer(wish: Wish, gpu_type: catalogue.GpuType, image: tuple[str, str, int]) -> Offer:
    image_id, image_name, smallest_disk_gb = image
    disk_gb = max(wish.disk_gb, smallest_disk_gb)
    return Offer(
        type=gpu_type.name,
        region=wish.region,
        zone=None,  # EC2 picks a zone that has room
        image_id=image_id,
        image_name=image_name,
        user=catalogue.USER,
        gpu=gpu_type.gpu,
        gpu_memory_gb=gpu_type.gpu_memory_gb,
        disk_gb=disk_gb,
        price_usd_per_hour=catalogue.price(gpu_type.name, wish.region),
        disk_usd_per_month=catalogue.disk_price(disk_gb, wish.region),
        # The 2017 image is older than IMDSv2 (2019): its cloud-init reads the first version only.
        imds_v2=gpu_type.image is not catalogue.Image.FAST_AI_COMMUNITY,
        note=gpu_type.retired,
    )
