"""Words in: the options that several commands share, and the settings that they resolve to."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from gpuops.settings import Settings


no_ssh_config_option = click.option(
    "--no-ssh-config", is_flag=True, default=None, help="Leave my own ssh config as it is."
)


def where(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say at which provider."""
    command = click.option("--region", help="The provider's region. Default: us-west-2.")(command)
    return click.option("--provider", help="Where machines come from. Default: aws.")(command)


def machine_options(command: Callable[..., None]) -> Callable[..., None]:
    """The options that say what kind of machine is launched, and what it may cost."""
    for option in (
        no_ssh_config_option,
        click.option("--admit", help="Who may reach ssh: an address block, or a URL that answers with your address."),
        click.option("--max-usd", type=float, help="It stops by itself when its hours from now on have cost this."),
        click.option("--max-hours", type=float, help="It stops by itself this long after its boot. Default: 12."),
        click.option("--max-usd-per-hour", type=float, help="Take no machine that costs more."),
        click.option("--disk-type", help="Kind of disk. Default: gp3."),
        click.option("--disk-gb", type=int, help="Size of the disk. Default: 100."),
        click.option("--subnet", help="The subnet to be in. Default: the default network's."),
        click.option("--vpc", help="The network (VPC) to be in. Default: the default one."),
        click.option("--user", help="The image's login. Default: ubuntu."),
        click.option("--image", help="The image to boot from. Default: the one that fits the type."),
        click.option("--type", "types", multiple=True, help="Machine type; several are tried in order."),
        where,
    ):
        command = option(command)
    return command


dry_run_option = click.option(
    "--dry-run", is_flag=True, help="Show the plan, ask whether it's permitted, change nothing."
)


def resolve(**flags: object) -> Settings:
    """Settings from these flags, this environment and this folder."""
    from gpuops import settings

    flags = {key: value or None if isinstance(value, tuple) else value for key, value in flags.items()}
    return settings.resolve(flags, environ=os.environ, folder=Path.cwd())
