"""A provider with the account behind it, for the laws that all providers keep."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from gpuops import host_keys, providers
from gpuops.machine import Machine, Offer, Prepared, State, Wish
from tests.computers import REGION, Cloud, Computer, until

FAR = "eu-west-1"


@dataclass
class Account:
    """One provider, its vendor seen from outside, and short ways to a machine of it."""

    provider: providers.Provider
    cloud: Cloud
    computer: Computer
    client_key: str
    tokens: int = 0

    @property
    def name(self) -> str:
        return self.computer.name

    def wish(self, **changes: object) -> Wish:
        return self.computer.settings(**{"types": "g4dn.xlarge", **changes}).wish()

    def offer(self, **changes: object) -> Offer:
        return self.provider.offers(self.wish(**changes))[0]

    def prepared(self, **changes: object) -> Prepared:
        return self.provider.prepare(self.wish(**changes), self.offer(**changes), client_key=self.client_key)

    def token(self) -> str:
        self.tokens += 1
        return f"{self.name}-{self.cloud.process.pid}-{self.tokens}"

    def launched(self, **changes: object) -> Machine:
        return self.provider.launch(self.prepared(**changes), self.token())

    def running(self, **changes: object) -> Machine:
        return self.wait(self.launched(**changes), State.RUNNING)

    def wait(self, machine: Machine, state: State) -> Machine:
        until(lambda: self.provider.refresh(machine).state is state, f"{machine.id} {state.value}")
        return self.provider.refresh(machine)


@pytest.fixture(scope="session")
def _opened() -> dict[str, providers.Provider]:
    return {}


@pytest.fixture(params=["aws"])
def account(
    request: pytest.FixtureRequest,
    _opened: dict[str, providers.Provider],
    new_computer: Callable[[], Computer],
    the_cloud: Cloud,
) -> Iterator[Account]:
    computer = new_computer()
    # Opened once for all tests of this worker: its clients for seventeen regions take half a second to make.
    if request.param not in _opened:
        _opened[request.param] = providers.open(request.param, computer.settings(region=REGION))
    client_key = host_keys.public_key_line(host_keys.client_key(computer.home / "keys"))
    yield Account(_opened[request.param], the_cloud, computer, client_key)
