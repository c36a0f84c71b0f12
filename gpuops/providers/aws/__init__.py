"""AWS EC2 through boto3, against whatever endpoint boto3 is pointed at."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timezone
from typing import TYPE_CHECKING

from gpuops import host_keys
from gpuops.errors import (
    GpuopsError,
    NotPermitted,
    ProviderError,
    QuotaExceeded,
    StateError,
    UnknownMachine,
    VendorUnreachable,
)
from gpuops.machine import Finding, GpuType, Inventory, Machine, Offer, Prepared, Trait, Unanswered, Wish
from gpuops.providers.aws import (
    catalogue,
    doctor,
    firewall,
    images,
    instances,
    network,
    offers,
    permissions,
    prices,
    quotas,
    regions,
    rehearsal,
    request,
)
from gpuops.providers.aws.clients import Clients
from gpuops.providers.aws.refusals import code_of, translated

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_ec2.type_defs import FilterTypeDef, InstanceTypeDef

    from gpuops.settings import Settings


class Aws:
    """EC2. A machine is ours by its tags, which are set in the call that creates it."""

    name = "aws"
    traits = frozenset(
        {Trait.STOP, Trait.TERMINATE, Trait.TAGS, Trait.USER_DATA, Trait.KNOWN_HOST_KEY, Trait.INTRODUCTION}
    )

    def __init__(self, settings: Settings) -> None:
        self._region = settings.region
        self._clients = Clients(settings.region)
        self._clients.check_region(settings.region)
        self._prices = prices.Prices(settings.home / "prices.json")
        self._account = ""

    def account(self) -> str:
        if not self._account:
            with translated("say whose credentials these are", region=self._region):
                self._account = self._clients.sts(self._region).get_caller_identity()["Account"]
        return self._account

    def offers(self, wish: Wish) -> list[Offer]:
        ec2, ssm, pricing = self._clients.ec2(wish.region), self._clients.ssm(wish.region), self._clients.pricing()
        return offers.find(ec2, ssm, pricing, wish, self._prices, now=datetime.now(timezone.utc))

    def catalogue(self, wish: Wish) -> list[GpuType]:
        ec2, pricing = self._clients.ec2(wish.region), self._clients.pricing()
        return catalogue.listed(ec2, pricing, wish.types, wish.region, self._prices, now=datetime.now(timezone.utc))

    def rehearse(self, wish: Wish, offer: Offer, *, client_key: str) -> None:
        ec2, block = self._clients.ec2(offer.region), firewall.admitted_block(wish.admit)
        image = images.named(ec2, offer.image_id, offer.region)
        vpc_id = network.vpc_of(ec2, region=offer.region, subnet=offer.subnet)
        group_id = rehearsal.firewall(ec2, vpc_id=vpc_id, block=block, port=wish.ssh_port)
        rehearsal.launch(ec2, request.prepared(wish, offer, image, group_id, client_key))

    def prepare(self, wish: Wish, offer: Offer, *, client_key: str) -> Prepared:
        ec2 = self._clients.ec2(offer.region)

        def open_firewall() -> str:
            return firewall.ensure(
                ec2,
                vpc_id=network.vpc_of(ec2, region=offer.region, subnet=offer.subnet),
                computer=_computer(client_key),
                block=firewall.admitted_block(wish.admit),
                port=wish.ssh_port,
            )

        with ThreadPoolExecutor(max_workers=2) as pool:
            image = pool.submit(images.named, ec2, offer.image_id, offer.region)
            group_id = pool.submit(open_firewall)
        return request.prepared(wish, offer, image.result(), group_id.result(), client_key)

    def admit(self, machine: Machine, wish: Wish, *, client_key: str) -> None:
        ec2 = self._clients.ec2(machine.region)
        if group_id := firewall.group_of(ec2, machine.id):
            firewall.let_in(
                ec2,
                group_id,
                computer=_computer(client_key),
                block=firewall.admitted_block(wish.admit),
                port=instances.ssh_port(machine.tags),
            )

    def launch(self, prepared: Prepared, token: str) -> Machine:
        offer = prepared.offer
        # A copy by way of JSON: boto3 changes the parameters that it is given (it encodes UserData in place).
        parameters = json.loads(json.dumps(prepared.request))
        try:
            with translated(f"launch a {offer.type} in {offer.place}", region=offer.region):
                answer = self._clients.ec2(offer.region, once=True).run_instances(**parameters, ClientToken=token)
        except QuotaExceeded as error:
            quotas.explain(error, self._clients, type_name=offer.type, region=offer.region)
            raise
        return self._machine(answer["Instances"][0], offer.region)

    def find(self, name: str) -> Inventory:
        return self._inventory({"Name": f"tag:{instances.NAME}", "Values": [name]})

    def machines(self) -> Inventory:
        return self._inventory({"Name": "tag-key", "Values": [instances.NAME]})

    def refresh(self, machine: Machine) -> Machine:
        try:
            with translated(f"describe {machine.id}", region=machine.region):
                answer = self._clients.ec2(machine.region).describe_instances(InstanceIds=[machine.id])
        except ProviderError as error:
            if code_of(error) != "InvalidInstanceID.NotFound":
                raise
            # Not proof that it is gone: a new instance is not yet seen everywhere (EC2 guide, Eventual consistency).
            return instances.unseen(machine)
        return self._machine(answer["Reservations"][0]["Instances"][0], machine.region)

    def inspect(self, machine_id: str) -> Machine:
        if not instances.is_id(machine_id):
            raise UnknownMachine(machine_id, (), next_step="EC2's ids are like i-0123456789abcdef0: gpuops status")
        # By a filter: asked for as such, an id that a region doesn't have is an error there.
        found, unanswered = self._listed([{"Name": "instance-id", "Values": [machine_id]}])
        if found:
            return self._with_its_power_off(found[0])
        if unanswered:
            raise VendorUnreachable(
                f"{machine_id} was not found, but these places did not answer: {_places(unanswered)}.",
                next_step=f"Try again in a minute. {unanswered[0].place} said: {unanswered[0].reason}",
            )
        raise UnknownMachine(machine_id, (), next_step="Is it of another account? aws sts get-caller-identity")

    def seen_host_keys(self, machine: Machine) -> tuple[str, ...]:
        with translated(f"show the console of {machine.id}", region=machine.region):
            answer = self._clients.ec2(machine.region).get_console_output(InstanceId=machine.id)
        return instances.shown_host_keys(answer.get("Output", ""))

    def label(self, machine: Machine, labels: Mapping[str, str]) -> None:
        tags = instances.labelled(machine, labels)
        with translated(f"label {machine.name} ({machine.id})", region=machine.region):
            self._clients.ec2(machine.region).create_tags(
                Resources=[machine.id], Tags=[{"Key": key, "Value": value} for key, value in tags.items()]
            )

    def introduce(self, machine: Machine, *, client_key: str) -> bool:
        if machine.ssh is None:
            return False
        # It takes the key; whether the image has the agent that asks for it, EC2 can't tell.
        try:
            with translated(f"introduce this computer to {machine.name}", region=machine.region):
                return self._clients.instance_connect(machine.region).send_ssh_public_key(
                    InstanceId=machine.id, InstanceOSUser=machine.ssh.user, SSHPublicKey=client_key
                )["Success"]
        except StateError:
            return False

    def start(self, machine: Machine) -> None:
        try:
            with translated(f"start {machine.name} ({machine.id})", region=machine.region):
                self._clients.ec2(machine.region, once=True).start_instances(InstanceIds=[machine.id])
        except QuotaExceeded as error:
            quotas.explain(error, self._clients, type_name=machine.type, region=machine.region)
            raise

    def stop(self, machine: Machine) -> None:
        with translated(f"stop {machine.name} ({machine.id})", region=machine.region):
            self._clients.ec2(machine.region).stop_instances(InstanceIds=[machine.id])

    def terminate(self, machine: Machine) -> None:
        with translated(f"terminate {machine.name} ({machine.id})", region=machine.region):
            self._clients.ec2(machine.region).terminate_instances(InstanceIds=[machine.id])

    def tidy(self, region: str) -> list[str]:
        with translated("tidy up", region=region):
            return _tidied(self._clients.ec2(region), region)

    def sweep(self) -> list[str]:
        answers = regions.ask_all(self._clients, self._region, _tidied)
        if failed := {region: answer for region, answer in answers.items() if isinstance(answer, GpuopsError)}:
            region, reason = next(iter(failed.items()))
            raise VendorUnreachable(
                f"Not everywhere could be looked: {', '.join(failed)}. {region} said: {reason.what}",
                left_behind="A firewall (security group) of gpuops's may be left there; it costs nothing.",
                next_step="Try again in a minute.",
            )
        return [word for answer in answers.values() if not isinstance(answer, GpuopsError) for word in answer]

    def check(self, wish: Wish) -> list[Finding]:
        return doctor.check(self, self._clients, wish, now=datetime.now(timezone.utc))

    def policy(self) -> str:
        return permissions.policy(self._clients.partition(self._region))

    def _inventory(self, which: FilterTypeDef) -> Inventory:
        """Our machines in every enabled region; a region that fails is named, not left out."""
        machines, unanswered = self._listed([which, {"Name": "instance-state-name", "Values": instances.EXISTING}])
        in_order = sorted(machines, key=lambda machine: (machine.name, machine.id))
        return Inventory(machines=tuple(in_order), unanswered=tuple(unanswered))

    def _listed(self, filters: list[FilterTypeDef]) -> tuple[list[Machine], list[Unanswered]]:
        """Where no region answers, raises what all of them said, or `VendorUnreachable`."""

        def described(ec2: EC2Client, region: str) -> list[InstanceTypeDef]:
            with translated(f"list the machines in {region}", region=region):
                pages = ec2.get_paginator("describe_instances").paginate(Filters=filters)
                return [i for page in pages for reservation in page["Reservations"] for i in reservation["Instances"]]

        machines: list[Machine] = []
        unanswered: list[Unanswered] = []
        answers = regions.ask_all(self._clients, self._region, described)
        for region, answer in answers.items():
            if isinstance(answer, GpuopsError):
                reason = f"not permitted there. {answer.what}" if isinstance(answer, NotPermitted) else answer.what
                unanswered.append(Unanswered(place=f"{self.name}/{region}", reason=reason))
            else:
                machines += [self._machine(instance, region) for instance in answer]
        if len(unanswered) == len(answers):
            errors = [answer for answer in answers.values() if isinstance(answer, GpuopsError)]
            if len({type(error) for error in errors}) == 1:
                raise errors[0]
            raise VendorUnreachable(
                f"No region of AWS answered; {unanswered[0].place} said: {unanswered[0].reason}",
                next_step="Try again in a minute.",
            )
        return machines, unanswered

    def _with_its_power_off(self, machine: Machine) -> Machine:
        """Of a machine that isn't ours, also what a power-off on it does: EC2 lists that nowhere."""
        if machine.unstoppable or not machine.state.exists:
            return machine
        with translated(f"describe {machine.id}", region=machine.region):
            answer = self._clients.ec2(machine.region).describe_instance_attribute(
                InstanceId=machine.id, Attribute="instanceInitiatedShutdownBehavior"
            )
        ends = answer["InstanceInitiatedShutdownBehavior"].get("Value") == "terminate"
        return dataclasses.replace(machine, unstoppable="a power-off from within deletes it") if ends else machine

    def _machine(self, instance: InstanceTypeDef, region: str) -> Machine:
        return instances.machine(instance, region, self._prices)


def _tidied(ec2: EC2Client, region: str) -> list[str]:
    """Delete our firewalls in the region, if no machine of ours is left there; a terminated one needs none."""
    with translated(f"list the machines in {region}", region=region):
        if ec2.describe_instances(Filters=instances.OURS)["Reservations"]:
            return []
    return [f"the firewall (security group) {group_id} in {region}" for group_id in firewall.remove(ec2)]


def _places(unanswered: list[Unanswered]) -> str:
    return ", ".join(place.place for place in unanswered)


def _computer(client_key: str) -> str:
    """This computer's id in the firewall: the beginning of its key's fingerprint."""
    return host_keys.fingerprint(client_key).removeprefix("SHA256:")[:12]
