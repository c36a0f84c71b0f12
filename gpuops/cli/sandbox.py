"""`gpuops sandbox …` and `gpuops --sandbox …`: the cloud on this computer."""

from __future__ import annotations

import os
from pathlib import Path

import click

from gpuops.cli import screen


def enter() -> None:
    """Point this process at the sandbox, started if need be. Everything after this sees an ordinary environment."""
    from gpuops import sandbox

    folder = _folder()
    if sandbox.was_cut_off(folder):
        screen.say("The sandbox had ended without `gpuops sandbox stop`; its machines are gone with it.", err=True)
    os.environ.update(sandbox.environment(folder, sandbox.start(folder)))


@click.group("sandbox")
def group() -> None:
    """The cloud on this computer: start, stop, status, reset."""


@group.command()
def start() -> None:
    """Start it; `gpuops --sandbox …` does so by itself."""
    from gpuops import sandbox

    cloud = sandbox.start(_folder())
    click.echo(f"The sandbox runs: {cloud.url} (process {cloud.pid}), files in {_folder()}.")


@group.command()
def stop() -> None:
    """End it, with every machine in it. Runs, keys and ssh config stay."""
    from gpuops import sandbox

    sandbox.stop(_folder())
    click.echo("The sandbox is stopped, and its machines are gone.")


@group.command()
def status() -> None:
    """Say whether it runs, and where its files are."""
    from gpuops import sandbox

    cloud = sandbox.status(_folder())
    click.echo(f"The sandbox runs: {cloud.url} (process {cloud.pid})." if cloud else "The sandbox does not run.")
    click.echo(f"Its files: {_folder()}")


@group.command()
def reset() -> None:
    """End it and delete all its files."""
    from gpuops import sandbox

    sandbox.reset(_folder())
    click.echo(f"The sandbox is stopped and {_folder()} is deleted.")


def _folder() -> Path:
    import platformdirs

    return Path(os.environ.get("GPUOPS_SANDBOX") or platformdirs.user_data_path("gpuops") / "sandbox").absolute()
