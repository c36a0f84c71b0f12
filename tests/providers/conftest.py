"""A provider with the account behind it, for the laws that all providers keep."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from gpuops.machine import Machine, Offer, Prepared, State, Wish
from gpuops.providers import Provider
from tests.computers import Cloud, Computer, until

FAR = "eu-west-1"


@dataclass
class Account:
    """One provider, its vendor seen from outside, and short ways to a machine of it."""

    provider: Provider
    cloud: Cloud
    computer: Computer

    @property
    def name(self) -> str:
        return self.computer.name

    def wish(self, **changes: object) -> Wish:
        return self.computer.settings(**{"types": "g4dn.xlarge", **changes}).wish()

    def offer(self, **changes: object) -> Offer:
        return self.provider.offers(self.wish(**changes))[0]

    def prepared(self, **changes: object) -> Prepared:
        wish = self.wish(**changes)
        return self.provider.prepare(wish, self.provider.offers(wish)[0], client_key=self.computer.client_key)

    def token(self) -> str:
        return self.cloud.token()

    def launched(self, **changes: object) -> Machine:
        return self.provider.launch(self.prepared(**changes), self.token())

    def running(self, **changes: object) -> Machine:
        return self.wait(self.launched(**changes), State.RUNNING)

    def wait(self, machine: Machine, state: State) -> Machine:
        until(lambda: self.provider.refresh(machine).state is state, f"{machine.id} {state.value}")
        return self.provider.refresh(machine)


@pytest.fixture(params=["aws"])
def account(request: pytest.FixtureRequest, new_computer: Callable[[], Computer], the_cloud: Cloud) -> Account:
    assert the_cloud.provider.name == request.param
    return Account(the_cloud.provider, the_cloud, new_computer())
