"""The values everything else speaks in: a wish, an offer, a machine. Frozen, and they do no I/O.

A `Machine` is what a provider last said. To know more, ask the provider again.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

FORMAT = 1
"""The format number written into everything that is stored or tagged; a newer one is refused."""

_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
# As useradd(8) takes it.
_LOGIN = re.compile(r"[a-z_][a-z0-9_-]{0,31}")

MAX_HOURS = 12.0
"""How long a machine runs before it stops by itself, unless told otherwise."""


class State(enum.Enum):
    """Where a machine is in its life, in EC2's words."""

    PENDING = "pending"
    RUNNING = "running"
    STOPPING = "stopping"
    STOPPED = "stopped"
    SHUTTING_DOWN = "shutting-down"
    TERMINATED = "terminated"
    UNKNOWN = "unknown"

    @property
    def bills(self) -> bool:
        """True when the machine's hours are (or may be) charged: what a vendor does not say counts against us."""
        return self in {State.PENDING, State.RUNNING, State.STOPPING, State.UNKNOWN}

    @property
    def exists(self) -> bool:
        """True when the machine can still be started, stopped or lost."""
        return self not in {State.SHUTTING_DOWN, State.TERMINATED}


class Trait(enum.Enum):
    """What a provider can do, planned on instead of discovered by failing."""

    STOP = "stop"
    TERMINATE = "terminate"
    TAGS = "tags"
    USER_DATA = "user-data"
    KNOWN_HOST_KEY = "known-host-key"
    INTRODUCTION = "introduction"


@dataclass(frozen=True, slots=True, kw_only=True)
class Address:
    """Where ssh answers, and as whom."""

    host: str
    user: str
    port: int = 22
    jump: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the person asked for; everything left open ("" or None) is the provider's to choose.

    `types` are tried in order; empty means the provider's own order of preference. `max_hours` is how long the
    machine runs before it stops by itself, counted anew from every boot. `image` replaces the image that goes with a
    type, `user` is its login. `authorized_keys` are public keys of other computers that the machine admits from its
    first boot. `for_training` leaves out what can't run the trainer.
    """

    name: str
    region: str
    types: tuple[str, ...] = ()
    image: str = ""
    user: str = "ubuntu"
    vpc: str = ""
    subnet: str = ""
    disk_gb: int = 100
    disk_type: str = "gp3"
    max_hours: float = MAX_HOURS
    max_usd_per_hour: float | None = None
    admit: str = "auto"
    authorized_keys: tuple[str, ...] = ()
    ssh_port: int = 22
    for_training: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One way to fulfil a wish: a type in a zone with an image, and its price.

    `zone` None lets the vendor choose. `price_from` says where the price is from and of when ("AWS, 2026-11-24").
    `unfit` says why the trainer can't run there, "" where nothing is known against it.
    """

    type: str
    region: str
    zone: str | None
    image_id: str
    image_name: str
    user: str
    gpu: str
    gpu_memory_gb: int
    disk_gb: int
    price_usd_per_hour: float | None
    disk_usd_per_month: float | None
    disk_type: str = "gp3"
    price_from: str = ""
    subnet: str = ""
    imds_v2: bool = True
    note: str = ""
    unfit: str = ""

    @property
    def place(self) -> str:
        return self.zone or self.region


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """Everything a launch needs, made without anything that bills: the exact request, ready to be stored and resent.

    `request` is JSON; it goes to disk before the call and a retry sends it unchanged.
    """

    offer: Offer
    request: Mapping[str, object]
    host_key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What a provider last said about one machine.

    `unusable` says why what it was labelled with can't be trusted (a newer gpuops made it, or somebody changed it):
    such a machine is shown, stopped and deleted, and nothing else. `unfit` says why the trainer can't run on it.

    While its host key is being replaced, `next_host_key` is accepted too; `has_own_host_key` is False as long as it
    still shows the one that it was launched with. `deadline` is when it stops by itself, of this boot; None where it
    doesn't run, or nobody knows. `stopped_at` is when it last stopped, where the provider says so. `is_adopted`: it
    was there before gpuops, which changes nothing about it. `unstoppable` says why it can't be stopped and started
    again like others, and `stays_behind` names what of it would go on billing after it was terminated.
    """

    id: str
    name: str
    provider: str
    region: str
    zone: str | None
    type: str
    state: State
    ssh: Address | None = None
    problem: str = ""
    price_usd_per_hour: float | None = None
    disk_usd_per_month: float | None = None
    host_key: str | None = None
    next_host_key: str | None = None
    has_own_host_key: bool = True
    launched_at: datetime | None = None
    stopped_at: datetime | None = None
    max_hours: float | None = None
    deadline: datetime | None = None
    is_adopted: bool = False
    unstoppable: str = ""
    stays_behind: tuple[str, ...] = ()
    unfit: str = ""
    tags: Mapping[str, str] = field(default_factory=dict)
    unusable: str = ""
    format: int = FORMAT

    @property
    def place(self) -> str:
        return f"{self.provider}/{self.region}"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuType:
    """One machine type with a GPU, as `gpuops offers` lists it. Prices are None where they aren't known."""

    name: str
    region: str
    zones: tuple[str, ...]
    gpu: str
    gpus: int
    gpu_memory_gb: int
    vcpus: int
    memory_gb: float
    price_usd_per_hour: float | None
    price_from: str
    spot_usd_per_hour: float | None
    note: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked into: what was found, and if it isn't well, how to mend it."""

    name: str
    is_well: bool
    found: str
    mend: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Uptime:
    """One boot of a machine as its own log has it. `ended` None: it goes on. `reason` says why it ended, in words."""

    booted: datetime
    ended: datetime | None
    reason: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Unanswered:
    """A place that was asked for its machines and did not answer."""

    place: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inventory:
    """Every machine that answered, and the places that did not."""

    machines: tuple[Machine, ...]
    unanswered: tuple[Unanswered, ...] = ()


def is_valid_name(name: str) -> bool:
    """True for what OpenSSH, EC2 tags and a file name all take: a lower-case host name label (RFC 1123).

    "localhost" is this computer, and NAME-jupyter is the tunnel to NAME.
    """
    return _HOST_NAME.fullmatch(name) is not None and name != "localhost" and not name.endswith("-jupyter")


def is_valid_login(user: str) -> bool:
    """True for a name of an account on a machine."""
    return _LOGIN.fullmatch(user) is not None
