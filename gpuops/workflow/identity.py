"""Who is who: the machine gets a host key that nobody else has seen, and other computers are let in."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from gpuops import lifecycle, transports, watch
from gpuops.errors import HostKeyChanged, KeyRefused, MachineUnreachable, ProviderError
from gpuops.machine import Machine, Trait

if TYPE_CHECKING:
    from gpuops.transports import Transport
    from gpuops.workflow.session import Session

_SHOWN_TRIES, _SHOWN_PAUSE_S = 20, 0.1
# A file whose last line has no end would join it to ours.
_AUTHORISE = (
    'umask 077; mkdir -p .ssh; file=.ssh/authorized_keys; [ -e "$file" ] || : >"$file"; '
    'grep -qxF "$1" "$file" || { [ -z "$(tail -c 1 "$file")" ] || echo >>"$file"; printf "%s\\n" "$1" >>"$file"; }'
)


def own_host_key(session: Session, machine: Machine) -> Machine:
    """The machine with a host key that it made itself, over the first line proven by the one it was launched with.

    That one was in the user data, which others may read. At every moment what the tags and known_hosts accept includes
    what the machine shows: the new key is accepted beside the old one before sshd changes, and alone afterwards. Cut
    off anywhere, the next command goes on: the machine makes one key, however often it's asked.
    """
    if machine.has_own_host_key:
        return machine
    with session.line(machine) as line:
        key = watch.next_host_key(line)
        both = replace(machine, next_host_key=key)
        if machine.next_host_key != key:
            session.provider.label(machine, {"next-host-key": key})
            # Every computer has to accept it before it is shown; where it isn't seen in time, they look again.
            lifecycle.wait_until_shown(
                session.provider, machine, lambda seen: seen.next_host_key == key, clock=session.clock
            )
        session.book.update([both])
        watch.switch_host_key(line)
    own = replace(machine, host_key=key, next_host_key=None, has_own_host_key=True)
    if not _is_shown(session, own):  # both stay accepted, and the next command sees to it
        return both
    session.provider.label(machine, {"host-key": key, "next-host-key": "", "own-host-key": "yes"})
    session.book.update([own])
    return own


def line_by_present_key(session: Session, machine: Machine, *, connect_timeout_s: float) -> Transport:
    """A line by the host key that the machine's labels have by now: another computer may just have had it make its own.

    Raises `HostKeyChanged` where they don't know the key that it shows.
    """
    try:
        return _line(session, machine, connect_timeout_s=connect_timeout_s)
    except HostKeyChanged:
        pins = _pins(machine)
        # One that has made its own key makes no other: then what is known now is all there is to know.
        seen = lifecycle.wait_until_shown(
            session.provider, machine, lambda seen: seen.has_own_host_key or _pins(seen) != pins, clock=session.clock
        )
        if _pins(seen) == pins:
            raise
        return _line(session, seen, connect_timeout_s=connect_timeout_s)


def _line(session: Session, machine: Machine, *, connect_timeout_s: float = 10.0) -> Transport:
    return transports.open(
        machine,
        identity_file=session.identity_file,
        access=session.book.access(machine),
        connect_timeout_s=connect_timeout_s,
    )


def _pins(machine: Machine) -> tuple[str | None, str | None]:
    return machine.host_key, machine.next_host_key


def _is_shown(session: Session, machine: Machine) -> bool:
    """Whether the machine's sshd proves this host key. While it reads it, it may answer nobody, or with the old one."""
    for _ in range(_SHOWN_TRIES):
        with contextlib.suppress(HostKeyChanged, MachineUnreachable), _line(session, machine):
            return True
        session.clock.sleep(_SHOWN_PAUSE_S)
    return False


def introduce(session: Session, machine: Machine, open_line: Callable[[], Transport]) -> bool:
    """Make this computer's key known to a machine that another computer launched; False where that can't be done.

    The provider has the machine admit it for a minute, in which we add it to those it always admits.
    """
    if Trait.INTRODUCTION not in session.provider.traits:
        return False
    session.tell(f"Introducing this computer to {machine.name}")
    key = session.client_key
    try:
        if not session.provider.introduce(machine, client_key=key):
            return False
        with open_line() as line:
            authorise(line, key)
    except (ProviderError, KeyRefused):
        return False
    return True


def authorise(line: Transport, public_key: str) -> None:
    """Have the machine admit this public key from now on. Idempotent."""
    line.run(["sh", "-c", _AUTHORISE, "sh", public_key.strip()])
