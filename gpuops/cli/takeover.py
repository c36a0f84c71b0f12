"""`gpuops adopt`, `admit`: an instance taken over, another computer let in."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from gpuops import cost
from gpuops.cli import options, screen
from gpuops.cli.options import resolve
from gpuops.errors import NotConfirmed

if TYPE_CHECKING:
    from gpuops.workflow import Takeover


@click.command()
@click.argument("instance")
@click.argument("name", required=False)
@options.where
@options.no_ssh_config_option
@click.option("--user", help="Its login. Default: ubuntu.")
@click.option("--ssh-port", type=int, help="Where its ssh listens. Default: 22.")
@click.option("--identity-file", help="The private key that it admits. Default: gpuops's own.")
@click.option("--host-key", "fingerprint", metavar="SHA256:…", help="What its host key has to be.")
@click.option("-y", "--yes", is_flag=True, help="Don't ask; needs --host-key where its key can't be known otherwise.")
def adopt(instance: str, fingerprint: str | None, yes: bool, **flags: object) -> None:
    """Take over an instance (i-…) that is there already, as NAME. It gets tags; nothing else about it changes."""
    from gpuops import workflow

    def confirm(takeover: Takeover) -> None:
        progress.pause()
        machine = takeover.machine
        known = "as it told AWS at its first boot" if takeover.is_proven else "as it shows it now: NOT proven"
        screen.rows(
            [
                ("adopt", f"{machine.id} as {machine.name}: {machine.type} in {machine.place}, {machine.state.value}"),
                ("price", f"{cost.rate(machine.price_usd_per_hour)} while it runs"),
                ("host key", f"{takeover.fingerprint} ({known if not fingerprint else 'as you said'})"),
                ("stops", "not by itself: gpuops changes nothing about it but its tags"),
            ],
            err=True,
        )
        if yes and not takeover.is_proven:
            raise NotConfirmed(
                "Its host key is not proven by anything, and that is not for -y to accept.",
                left_behind="Nothing was changed.",
                next_step=f"See it on its own console (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub), then: "
                f"gpuops adopt {instance} {machine.name} --host-key {takeover.fingerprint}",
            )
        screen.ask("Take it over?", yes=yes)

    settings = resolve(**flags)
    with screen.Progress() as progress:
        machine = workflow.adopt(settings, instance, fingerprint=fingerprint, confirm=confirm, tell=progress.tell)
    screen.say(f"{machine.name} is {machine.id}: {machine.type} in {machine.place}, {cost.per_hour(machine)}.")
    if settings.identity_file:
        screen.say(f'In gpuops.toml, so that it is reached again: identity_file = "{settings.identity_file}"')


@click.command()
@click.argument("name")
@click.argument("key", required=False)
def admit(name: str, key: str | None) -> None:
    """Let another computer in: KEY is its public key, or a file with that. Without KEY, let this one in."""
    from gpuops import workflow

    settings = resolve(name=name)
    with contextlib.suppress(OSError):  # too long for a file's name, or no file: then it is the key itself
        if key is not None and (path := Path(key).expanduser()).is_file():
            key = path.read_text(encoding="utf-8", errors="replace")
    with screen.Progress() as progress:
        machine = workflow.admit(settings, key, tell=progress.tell)
    screen.say(f"{machine.name} admits {'that key' if key else 'this computer'} now.")
