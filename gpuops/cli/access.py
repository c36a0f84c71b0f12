"""`gpuops ssh`, `cp`, `notebook`, `tunnel`: getting to a machine, with programs that stay until they are left."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, NoReturn

import click

from gpuops import cost
from gpuops.cli import options, plan, screen
from gpuops.cli.options import resolve
from gpuops.errors import BadInput

if TYPE_CHECKING:
    from gpuops.machine import Machine
    from gpuops.settings import Settings
    from gpuops.workflow import Forward

_LEFT_EXIT_CODE = 130
# As scp has it: a colon before any slash.
_THERE = re.compile(r"(?P<name>[^/:]+):(?P<path>.*)", re.S)
_FORWARD = re.compile(r"(\d{1,5})(?::(\d{1,5}))?")


@click.command(
    short_help="A shell on the machine, or one command there.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.argument("name", required=False)
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
def ssh(name: str | None, command: tuple[str, ...]) -> None:
    """Open a shell on the machine, or run COMMAND there and exit as it does: gpuops ssh NAME -- nvidia-smi -L

    COMMAND reaches the machine's shell as ssh sends it, its words joined by spaces: quote for that shell.
    """
    from gpuops import openssh, workflow

    openssh.require("ssh")
    settings = resolve(name=name)
    machine, access = workflow.reach(settings)
    _exit_as(["ssh", *access.words, machine.name, *command], settings, machine)


@click.command(short_help="Copy files to the machine, or from it.")
@click.argument("paths", nargs=-1, required=True, metavar="FROM… TO")
def cp(paths: tuple[str, ...]) -> None:
    """Copy files and folders: gpuops cp photos NAME:data, or gpuops cp 'NAME:*.ipynb' .

    Paths there count from the home folder. What is there already is overwritten.
    """
    from gpuops import openssh, workflow

    openssh.require("scp")
    name, words = _copy(paths)
    settings = resolve(name=name)
    machine, access = workflow.reach(settings)
    _exit_as(["scp", *access.words, "-rp", "-o", "ClearAllForwardings=yes", "--", *words], settings, machine)


@click.command(short_help="Jupyter on the machine, in this computer's browser.")
@click.argument("name", required=False)
@click.option("--port", type=click.IntRange(1, 65535), help="The port here. Default: 8888, or the next free one.")
@click.option("--open", "in_browser", is_flag=True, help="Open the browser.")
@click.option("--stop", is_flag=True, help="End Jupyter and its kernels; the machine runs on.")
@options.machine_options
@click.option("-y", "--yes", is_flag=True, help="Don't ask.")
def notebook(port: int | None, in_browser: bool, stop: bool, yes: bool, **flags: object) -> None:
    """Start the machine and its Jupyter, if they don't run, and lead a port here to it until Ctrl-C."""
    from gpuops import workflow

    settings = resolve(**flags)
    with screen.Progress() as progress:
        if stop:
            machine, did_run = workflow.stop_notebook(settings, tell=progress.tell)
            progress.pause()
            what = "Jupyter has ended" if did_run else "No Jupyter runs"
            screen.say(f"{what} on {machine.name}, which runs on at {cost.per_hour(machine)}.")
            screen.say(f"  gpuops down {machine.name}   stop the machine; its disk is kept")
            return

        def opened(machine: Machine, url: str) -> None:
            progress.end()
            screen.say(f"  {url}")
            screen.say(f"{machine.name} runs at {cost.per_hour(machine)}, and stops {plan.deadline(machine)}.")
            screen.say("Ctrl-C closes the tunnel; the notebook runs on.", err=True)
            plan.show_left_to_do(settings, machine)
            if in_browser:
                click.launch(url)

        try:
            workflow.notebook(
                settings,
                port=port,
                confirm=plan.confirm_plan(settings, progress, yes=yes),
                opened=opened,
                tell=progress.tell,
            )
        except workflow.Left as left:
            progress.pause()
            _say_what_goes_on(
                left.machine,
                f"The notebook runs on, on {left.machine.name}",
                (f"gpuops notebook {left.machine.name}", "come back to it"),
                (f"gpuops notebook {left.machine.name} --stop", "end Jupyter and its kernels"),
            )


@click.command(short_help="Ports of the machine, on this computer.")
@click.argument("name")
@click.argument("ports", nargs=-1, required=True, metavar="REMOTE[:LOCAL]…")
@options.no_ssh_config_option
def tunnel(name: str, ports: tuple[str, ...], **flags: object) -> None:
    """Lead ports here to the machine's own, until Ctrl-C: gpuops tunnel NAME 6006 8000:9000

    LOCAL is the port here; without it, the same number or the next free one.
    """
    from gpuops import workflow

    settings = resolve(name=name, **flags)
    with screen.Progress() as progress:

        def opened(machine: Machine, pairs: list[tuple[int, int]]) -> None:
            progress.end()
            for here, there in pairs:
                screen.say(f"  127.0.0.1:{here}  is {machine.name}'s own {there}")
            screen.say("Ctrl-C closes it; the machine runs on.", err=True)

        try:
            workflow.tunnel(settings, [_forward(word) for word in ports], opened=opened, tell=progress.tell)
        except workflow.Left as left:
            progress.pause()
            again = " ".join(["gpuops tunnel", name, *ports])
            _say_what_goes_on(
                left.machine, f"The tunnel is closed; {left.machine.name} runs on", (again, "open it again")
            )


def _exit_as(argv: list[str], settings: Settings, machine: Machine) -> NoReturn:
    from gpuops import openssh, workflow

    code = openssh.run(argv)
    if code == openssh.FAILED:
        workflow.check_line(settings, machine)  # raises where ssh was at fault, and not what it ran
    sys.exit(code)


def _copy(paths: tuple[str, ...]) -> tuple[str, list[str]]:
    """The machine's name, and the paths as scp takes them. Raises `BadInput`."""
    *sources, target = paths
    names = {found["name"] if (found := _THERE.fullmatch(path)) else None for path in sources}
    end = _THERE.fullmatch(target)
    if len(names) != 1 or (names == {None}) == (end is None):
        raise BadInput(
            "One side is this computer, the other is one machine, NAME:PATH.",
            left_behind="Nothing was copied.",
            next_step="gpuops cp notes.ipynb fast-ai:notebooks/, or gpuops cp 'fast-ai:notebooks/*' .",
        )
    (source,) = names
    return source or (end["name"] if end else ""), list(paths)


def _forward(word: str) -> Forward:
    from gpuops import workflow

    said = _FORWARD.fullmatch(word)
    numbers = [int(number) for number in said.groups() if number is not None] if said else []
    if not numbers or not all(1 <= number <= 65535 for number in numbers):
        raise BadInput(
            f"{word!r} is no port, nor two as in 6006:16006.",
            left_behind="Nothing was opened.",
            next_step="For TensorBoard: gpuops tunnel fast-ai 6006",
        )
    return workflow.Forward(remote_port=numbers[0], local_port=numbers[1] if len(numbers) > 1 else None)


def _say_what_goes_on(machine: Machine, what: str, *commands: tuple[str, str]) -> NoReturn:
    """After Ctrl-C: what runs on, what it costs, and the commands to come back and to end it."""
    screen.say(f"\n{what}, at {cost.per_hour(machine)}; it stops {plan.deadline(machine)}.", err=True)
    screen.rows([*commands, (f"gpuops down {machine.name}", "stop the machine; its disk is kept")], err=True)
    sys.exit(_LEFT_EXIT_CODE)
