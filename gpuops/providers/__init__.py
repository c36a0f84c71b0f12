"""Where machines come from. One protocol, one table of names; an implementation is imported only when it is opened.

Laws that every method keeps (``tests/providers/test_laws.py`` holds them against every provider):

- a method returns at once and never waits for a machine; `gpuops.lifecycle` alone waits;
- what is already so is success: starting what runs, stopping what is stopped, terminating what is gone;
- nothing but `launch` and `start` makes anything bill, and `launch` makes at most one machine for a token;
- a vendor's error leaves as one of `gpuops.errors`, raised `from` the original.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from gpuops.errors import UnknownProvider
from gpuops.machine import Inventory, Machine, Offer, Prepared, Trait, Wish

if TYPE_CHECKING:
    from gpuops.settings import Settings

_IMPLEMENTATIONS = {"aws": ("gpuops.providers.aws", "Aws")}


class Provider(Protocol):
    """A place that rents machines."""

    name: str
    traits: frozenset[Trait]

    def account(self) -> str:
        """Whose machines these are. Raises `NoCredentials`."""
        ...

    def offers(self, wish: Wish) -> list[Offer]:
        """Ways to fulfil the wish, best first. Raises `NothingOffered` where there is none."""
        ...

    def prepare(self, wish: Wish, offer: Offer, *, client_key: str) -> Prepared:
        """Make what a launch needs (firewall, first boot, host key). Idempotent; nothing here bills."""
        ...

    def admit(self, machine: Machine, wish: Wish, *, client_key: str) -> None:
        """Let this computer reach the machine's ssh from where it is now. Idempotent; nothing here bills."""
        ...

    def launch(self, prepared: Prepared, token: str) -> Machine:
        """One attempt. The same token gives the same machine. Raises `NoCapacity` naming what was full."""
        ...

    def find(self, name: str) -> Inventory:
        """Every machine of ours with this name that exists, in all regions, and the regions that did not answer."""
        ...

    def refresh(self, machine: Machine) -> Machine:
        """What the vendor says of this machine now, by id and region. A machine that is gone is `TERMINATED`."""
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


def open(name: str, settings: Settings) -> Provider:
    """The provider of that name. Raises `UnknownProvider`, naming the closest."""
    if name not in _IMPLEMENTATIONS:
        raise UnknownProvider(name, _IMPLEMENTATIONS)
    module, attribute = _IMPLEMENTATIONS[name]
    provider: Provider = getattr(importlib.import_module(module), attribute)(settings)
    return provider
