"""Ways to fulfil a wish: every wanted type with the image that goes with it, in every zone that can be reached."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from typing import TYPE_CHECKING

from gpuops import cost
from gpuops.errors import NothingOffered, OverLimit
from gpuops.machine import Offer, Wish
from gpuops.providers.aws import catalogue, images, network, prices

if TYPE_CHECKING:
    from mypy_boto3_ec2.client import EC2Client
    from mypy_boto3_pricing.client import PricingClient
    from mypy_boto3_ssm.client import SSMClient


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class _Found:
    """What AWS answered: everything that offers are made of. Each type has its image, or None where there is none."""

    types: Mapping[str, catalogue.InstanceType]
    zones: Mapping[str, Sequence[str]]
    images: Mapping[str, images.Image | None]
    network: network.Network


def find(
    ec2: EC2Client, ssm: SSMClient, pricing: PricingClient, wish: Wish, known_prices: prices.Prices, *, now: datetime
) -> list[Offer]:
    """Types in the order of preference, zones in that of their names.

    Raises `UnknownType`, `BadImage`, `NoNetwork`, `OverLimit`, and `NothingOffered` with the reason of every type.
    """
    names = tuple(dict.fromkeys(wish.types)) or catalogue.PREFERRED
    found = _ask(ec2, ssm, pricing, wish, names, known_prices, now)
    absent = {name: reason for name in names if (reason := _absence(wish, found, name))}
    offers = [
        _offer(wish, found, name, zone, known_prices)
        for name in names
        if name not in absent
        for zone in _zones(found, name)
    ]
    fit = [offer for offer in offers if not (wish.for_training and offer.unfit)]
    if not fit:
        raise _nothing(wish, [*absent.values(), *(f"{offer.type}: {offer.unfit}" for offer in offers)])
    chosen = fit if wish.max_usd_per_hour is None else _affordable(fit, wish.name, wish.max_usd_per_hour)
    missed = [absent[name] for name in names[: names.index(chosen[0].type)] if name in absent]
    return [_instead(chosen[0], missed), *chosen[1:]] if missed else chosen


def _ask(
    ec2: EC2Client,
    ssm: SSMClient,
    pricing: PricingClient,
    wish: Wish,
    names: Sequence[str],
    known_prices: prices.Prices,
    now: datetime,
) -> _Found:
    """All at once: a person is waiting."""

    def image(is_of_2017: bool) -> images.Image | None:
        if wish.image:
            return images.named(ec2, wish.image, wish.region)
        return images.community(ec2, wish.region) if is_of_2017 else images.deep_learning(ec2, ssm, wish.region)

    goes_with = {name: catalogue.is_p2(name) and not wish.image for name in names}
    with ThreadPoolExecutor(max_workers=6) as pool:
        types = pool.submit(catalogue.types, ec2, names, wish.region)
        zones = pool.submit(catalogue.zones, ec2, names, wish.region)
        reached = pool.submit(network.find, ec2, wish)
        asked = {is_of_2017: pool.submit(image, is_of_2017) for is_of_2017 in set(goes_with.values())}
        priced = pool.submit(known_prices.look_up, pricing, names, wish.region, now=now)
    priced.result()
    found = _Found(
        types=types.result(),
        zones=zones.result(),
        images={name: asked[goes_with[name]].result() for name in names},
        network=reached.result(),
    )
    _refuse_other_processors_image(wish, found)
    return found


def _refuse_other_processors_image(wish: Wish, found: _Found) -> None:
    image = found.images[next(iter(found.images))]
    if wish.image and image and not any(image.architecture in t.architectures for t in found.types.values()):
        types = ", ".join(f"{t.name} is {' or '.join(t.architectures)}" for t in found.types.values())
        raise images.bad(f"The image {image.id} is for {image.architecture} processors, and {types}", wish.region)


def _absence(wish: Wish, found: _Found, name: str) -> str:
    """Why this type can't be had at all, or ""."""
    if name not in found.types or name not in found.zones:
        return catalogue.retired(name) or f"{wish.region} doesn't offer {name}"
    type_, image = found.types[name], found.images[name]
    if image is None:
        which = "fast.ai's image of 2017" if catalogue.is_p2(name) else "a Deep Learning AMI of AWS's"
        return f"{wish.region} doesn't have {which}, which goes with {name}"
    if image.architecture not in type_.architectures:
        return f"{name} is {' or '.join(type_.architectures)}, and there is only an {image.architecture} image for it"
    if not _zones(found, name):
        return f"{name} is in {', '.join(found.zones[name])} only, and the network is not"
    return ""


def _zones(found: _Found, name: str) -> list[str]:
    return [zone for zone in found.zones[name] if zone in found.network.subnets]


def _offer(wish: Wish, found: _Found, name: str, zone: str, known_prices: prices.Prices) -> Offer:
    type_, image, price = found.types[name], found.images[name], known_prices.of(name, wish.region)
    assert image is not None  # or the type would be absent
    disk_gb = max(wish.disk_gb, image.disk_gb)
    return Offer(
        type=name,
        region=wish.region,
        zone=zone,
        subnet=found.network.subnets[zone],
        image_id=image.id,
        image_name=image.name,
        user=wish.user,
        gpu=type_.gpu if type_.gpus == 1 else f"{type_.gpus} × {type_.gpu}",
        gpu_memory_gb=type_.gpu_memory_gb,
        disk_gb=disk_gb,
        disk_type=wish.disk_type,
        price_usd_per_hour=price.usd_per_hour if price else None,
        price_from=price.source if price else "",
        disk_usd_per_month=prices.disk(disk_gb, wish.disk_type, wish.region),
        imds_v2=image.has_imds_v2,
        note=catalogue.retired(name),
        unfit=catalogue.unfit(name, image.id),
    )


def _nothing(wish: Wish, reasons: Sequence[str]) -> NothingOffered:
    return NothingOffered(
        f"{wish.region} has nothing that fits.\n" + "\n".join(f"  {reason}" for reason in dict.fromkeys(reasons)),
        left_behind="Nothing was launched.",
        next_step=f"See what there is: gpuops offers. Or try another region: gpuops up {wish.name} --region us-east-1",
    )


def _affordable(offers: Sequence[Offer], name: str, max_usd_per_hour: float) -> list[Offer]:
    """A price that isn't known may be any."""
    if cheap := [o for o in offers if o.price_usd_per_hour is not None and o.price_usd_per_hour <= max_usd_per_hour]:
        return cheap
    priced = {o.price_usd_per_hour: o.type for o in offers if o.price_usd_per_hour is not None}
    if not priced:
        raise OverLimit(
            f"What {', '.join(dict.fromkeys(o.type for o in offers))} costs in {offers[0].region} is not known, "
            f"and no more than {cost.rate(max_usd_per_hour)} is allowed.",
            left_behind="Nothing was launched.",
            next_step=f"Try a region whose prices are known (gpuops up {name} --region us-west-2), or give no limit.",
        )
    least = min(priced)
    raise OverLimit(
        f"The cheapest is {priced[least]} at {cost.rate(least)}, and no more than {cost.rate(max_usd_per_hour)} is "
        "allowed.",
        left_behind="Nothing was launched.",
        next_step=f"gpuops up {name} --max-usd-per-hour {math.ceil(least * 100) / 100:g}; all prices: gpuops offers",
    )


def _instead(offer: Offer, missed: Sequence[str]) -> Offer:
    note = f"{'; '.join(dict.fromkeys(missed))}: {offer.type} at {cost.rate(offer.price_usd_per_hour)} is used instead"
    return dataclasses.replace(offer, note=f"{note}; {offer.note}" if offer.note else note)
