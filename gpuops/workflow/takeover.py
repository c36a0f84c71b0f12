"""Machines and computers that come from elsewhere: an instance taken over, another computer let in."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from gpuops import host_keys, lifecycle, transports
from gpuops.errors import BadData, BadInput, ProviderError, StateError, VendorUnreachable
from gpuops.lifecycle import Clock, Tell
from gpuops.machine import Address, Machine, State
from gpuops.settings import Settings
from gpuops.workflow import identity
from gpuops.workflow.session import REAL_CLOCK, Session


@dataclass(frozen=True, slots=True, kw_only=True)
class Takeover:
    """A machine about to be taken over. `is_proven`: its host key is known from somewhere else than itself."""

    machine: Machine
    is_proven: bool

    @property
    def fingerprint(self) -> str:
        return host_keys.fingerprint(self.machine.host_key or "")


def adopt(
    settings: Settings,
    machine_id: str,
    *,
    fingerprint: str | None,
    confirm: Callable[[Takeover], None],
    tell: Tell,
    clock: Clock = REAL_CLOCK,
) -> Machine:
    """Take over an instance that gpuops did not launch, under the settings' name: it gets tags, and nothing else.

    Its host key is what it told the provider at its first boot; else what it shows now, which has to agree with
    `fingerprint` where that is given. Raises `StateError` where it can't be taken over.
    """
    session = Session.open(settings, tell, clock)
    name = settings.name
    with session.locked():
        machine = session.provider.inspect(machine_id)
        _refuse(session, machine)
        inventory = session.provider.find(name)
        if inventory.unanswered:
            silent = ", ".join(place.place for place in inventory.unanswered)
            raise VendorUnreachable(
                f"Whether there is a machine {name!r} already is not known: no answer from {silent}.",
                left_behind="Nothing was changed.",
                next_step=f"gpuops adopt {machine_id} {name}",
            )
        if other := lifecycle.find_one(inventory, name):
            raise StateError(
                f"There is a machine named {name} already: {other.id} in {other.place}.",
                left_behind="Nothing was changed.",
                next_step=f"Give this one another name: gpuops adopt {machine_id} NAME",
            )
        takeover = _takeover(session, machine, fingerprint)
        confirm(takeover)
        session.provider.label(
            machine,
            {
                "name": name,
                "host-key": takeover.machine.host_key or "",
                "own-host-key": "yes",
                "user": settings.user,
                "ssh-port": str(settings.ssh_port),
                "adopted": "yes",
            },
        )
        machine = lifecycle.wait_until_shown(session.provider, machine, lambda seen: not seen.unusable, clock=clock)
        session.ledger.seen([machine], now=clock.now())
        session.book.update([machine])
        session.book.bring_in(machine)
        return machine


def _refuse(session: Session, machine: Machine) -> None:
    nothing = "Nothing was changed."
    if "gpuops:name" in machine.tags:
        raise StateError(
            f"{machine.id} is gpuops's already, named {machine.name}.", left_behind=nothing, next_step="gpuops status"
        )
    if machine.unstoppable:
        raise StateError(
            f"{machine.id} can't be adopted: {machine.unstoppable}, and gpuops stops and starts its machines.",
            left_behind=nothing,
            next_step="Save it as an image, and launch from that: gpuops up --image ami-…",
        )
    if not machine.state.exists:
        raise StateError(f"{machine.id} is {machine.state.value}.", left_behind=nothing, next_step="gpuops status")


def _takeover(session: Session, machine: Machine, fingerprint: str | None) -> Takeover:
    try:
        told = session.provider.seen_host_keys(machine)
    except (ProviderError, StateError):  # not permitted, or not known any more
        told = ()
    if told:
        key, is_proven = told[0], True
    elif machine.state is State.RUNNING and machine.ssh:
        address = Address(host=machine.ssh.host, user=session.settings.user, port=session.settings.ssh_port)
        key, is_proven = transports.shown_host_key(address), False
    else:
        raise StateError(
            f"{machine.id} is {machine.state.value}, and its host key is not known.",
            left_behind="Nothing was changed.",
            next_step=f"Start it in the provider's console, then: gpuops adopt {machine.id}",
        )
    if fingerprint is not None:
        if host_keys.fingerprint(key) != fingerprint:
            raise BadInput(
                f"{machine.id} has the host key {host_keys.fingerprint(key)}, not {fingerprint}.",
                left_behind="Nothing was changed.",
                next_step="If you are sure of the one that you gave, somebody stands between: don't go on.",
            )
        is_proven = True
    return Takeover(machine=replace(machine, name=session.settings.name, host_key=key), is_proven=is_proven)


def admit(settings: Settings, public_key: str | None, *, tell: Tell, clock: Clock = REAL_CLOCK) -> Machine:
    """Have the running machine admit `public_key` too; without one, let this computer in.

    Raises `BadData` for what is no public key, and `KeyRefused` where this computer can't be let in.
    """
    key = public_key.strip() if public_key is not None else None
    if key is not None and (not host_keys.is_key(key) or "\n" in key):
        raise BadData(
            f"This is not a public key: {key[:60]!r}.", next_step="A line like those in ~/.ssh/id_ed25519.pub"
        )
    session = Session.open(settings, tell, clock)
    with session.locked():
        machine = session.existing()
        if machine.state is not State.RUNNING:
            raise StateError(
                f"{machine.name} is {machine.state.value}.",
                left_behind="Nothing was changed.",
                next_step=f"gpuops up {machine.name}",
            )
        session.admit(machine)
        machine = session.wait(machine)
        if key is not None:
            with session.line(machine) as line:
                identity.authorise(line, key)
    return machine
