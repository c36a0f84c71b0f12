"""Where machines come from. One protocol, one table of names; an implementation is imported only when it is opened.

Laws that every method keeps (``tests/providers/test_laws.py`` holds them against every provider):

- a method returns at once and never waits for a machine; `gpuops.lifecycle` alone waits;
- what is already so is success: starting what runs, stopping what is stopped, terminating what is gone;
- nothing but `launch` and `start` makes anything bill, and `launch` makes at most one machine for a token;
- a vendor's error leaves as one of `gpuops.errors`, raised `from` the original.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Protocol

from gpuops.errors import UnknownProvider
from gpuops.machine import Finding, GpuType, Inventory, Machine, Offer, Prepared, Trait, Wish

if TYPE_CHECKING:
    from gpuops.settings import Settings

LABELS = (
    "name",
    "host-key",
    "next-host-key",
    "own-host-key",
    "user",
    "ssh-port",
    "max-hours",
    "disk-gb",
    "deadline",
    "adopted",
)
"""What `label` may set. Times are ISO 8601, yes is "yes" and no "". A machine's `Machine` fields are read from them."""

_IMPLEMENTATIONS = {"aws": ("gpuops.providers.aws", "Aws")}


class Provider(Protocol):
    """A place that rents machines."""

    name: str
    traits: frozenset[Trait]

    def account(self) -> str:
        """Whose machines these are. Raises `NoCredentials`."""
        ...

    def offers(self, wish: Wish) -> list[Offer]:
        """Ways to fulfil the wish, best first: every type in every zone that has it.

        Raises `NothingOffered` where there is none, `OverLimit` where none is cheap enough, `UnknownType`, `BadImage`,
        `NoNetwork`.
        """
        ...

    def catalogue(self, wish: Wish) -> list[GpuType]:
        """Every type with a GPU that the region has, cheapest first, with what it costs on demand and as spot."""
        ...

    def rehearse(self, wish: Wish, offer: Offer, *, client_key: str) -> None:
        """Ask the vendor whether the launch would be permitted, changing nothing. Raises what a launch would raise."""
        ...

    def prepare(self, wish: Wish, offer: Offer, *, client_key: str) -> Prepared:
        """Make what a launch needs (firewall, first boot, host key). Idempotent; nothing here bills."""
        ...

    def admit(self, machine: Machine, wish: Wish, *, client_key: str) -> None:
        """Let this computer reach the machine's ssh from where it is now. Idempotent; nothing here bills."""
        ...

    def launch(self, prepared: Prepared, token: str) -> Machine:
        """One attempt. The same token gives the same machine. Raises `NoCapacity` naming what was full, `Throttled`."""
        ...

    def find(self, name: str) -> Inventory:
        """Every machine of ours with this name that exists, in all regions, and the regions that did not answer."""
        ...

    def refresh(self, machine: Machine) -> Machine:
        """What the vendor says of this machine now, by id and region. A machine that is gone is `TERMINATED`."""
        ...

    def inspect(self, machine_id: str) -> Machine:
        """Any machine of the account by its id, ours or not, in whatever region. Raises `UnknownMachine`."""
        ...

    def seen_host_keys(self, machine: Machine) -> tuple[str, ...]:
        """The host keys that the machine itself told the vendor when it first booted; none where it can't be known."""
        ...

    def label(self, machine: Machine, labels: Mapping[str, str]) -> None:
        """Set these labels (without the vendor's prefix, see `LABELS`) in one call; its other labels stay."""
        ...

    def introduce(self, machine: Machine, *, client_key: str) -> bool:
        """Have the machine admit this key for a minute, on the strength of our credentials; False where it can't."""
        ...

    def machines(self) -> Inventory:
        """Every machine of ours in all enabled regions, asked at once, and the regions that did not answer."""
        ...

    def start(self, machine: Machine) -> None:
        """Start it; running already is success."""
        ...

    def stop(self, machine: Machine) -> None:
        """Stop it, keeping its disk; stopped already is success."""
        ...

    def terminate(self, machine: Machine) -> None:
        """Delete it and its disk; gone already is success."""
        ...

    def tidy(self, region: str) -> list[str]:
        """Delete what we made in this region, if no machine of ours is left there; says in words what is gone."""
        ...

    def sweep(self) -> list[str]:
        """`tidy` in every enabled region. Raises `VendorUnreachable` naming those that did not answer."""
        ...

    def check(self, wish: Wish) -> list[Finding]:
        """Look into everything that a launch needs of the vendor: credentials, permissions, quota, image, clock."""
        ...

    def policy(self) -> str:
        """The smallest set of permissions that suffices, as the vendor's own policy document."""
        ...


def open(name: str, settings: Settings) -> Provider:
    """The provider of that name. Raises `UnknownProvider`, naming the closest."""
    if name not in _IMPLEMENTATIONS:
        raise UnknownProvider(name, _IMPLEMENTATIONS)
    module, attribute = _IMPLEMENTATIONS[name]
    provider: Provider = getattr(importlib.import_module(module), attribute)(settings)
    return provider
