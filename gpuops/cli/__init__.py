"""Words in, one call, words out. This package alone prints, prompts and exits."""

from __future__ import annotations

import difflib
import os
import signal
import sys
from typing import NoReturn

import click

from gpuops import __version__
from gpuops.cli import access, account, bills, machines, runs, sandbox, screen, takeover
from gpuops.errors import BadInput, Bug, GpuopsError, LocalTrouble

_INTERRUPTED_EXIT_CODE = 130
_READER_GONE_EXIT_CODE = 1  # as click has it


class _Commands(click.Group):
    """A group that names the closest command for one that it doesn't have."""

    def resolve_command(
        self, context: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(context, args)
        except click.UsageError:
            names = self.list_commands(context)
            closest = difflib.get_close_matches(args[0], names, n=1)
            raise BadInput(
                f"There is no command {args[0]!r}." + (f" Did you mean {closest[0]!r}?" if closest else ""),
                next_step=f"Commands: {', '.join(names)}.",
            ) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--sandbox", "in_sandbox", is_flag=True, help="Work in a cloud on this computer; nothing costs anything.")
@click.option("--debug", is_flag=True, help="Show the traceback of an error.")
@click.version_option(__version__, prog_name="gpuops")
def cli(in_sandbox: bool, debug: bool) -> None:
    """From a laptop to trained weights on a GPU you don't own, and never to a bill you didn't expect."""
    if in_sandbox:
        sandbox.enter()
        screen.called("gpuops --sandbox")


cli.add_command(machines.up)
cli.add_command(machines.status)
cli.add_command(access.ssh)
cli.add_command(access.cp)
cli.add_command(access.notebook)
cli.add_command(access.tunnel)
cli.add_command(machines.down)
cli.add_command(machines.extend)
cli.add_command(machines.reap)
cli.add_command(runs.train)
cli.add_command(runs.attach)
cli.add_command(runs.pull)
cli.add_command(runs.runs)
cli.add_command(account.offers)
cli.add_command(bills.cost)
cli.add_command(account.doctor)
cli.add_command(takeover.adopt)
cli.add_command(takeover.admit)
cli.add_command(account.uninstall)
cli.add_command(sandbox.group)


def main(argv: list[str] | None = None) -> NoReturn:
    """Run a command line and exit with its code; errors become sentences, never tracebacks."""
    args = sys.argv[1:] if argv is None else argv
    # A hang-up or a kill unwinds like Ctrl-C does, so that what was started is released on the way out.
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup wants it ignored
            signal.signal(number, lambda received, _: sys.exit(128 + received))
    try:
        code = _run(args)
    except BrokenPipeError:  # `gpuops status | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = _READER_GONE_EXIT_CODE
    sys.exit(code)


def _run(args: list[str]) -> int:
    try:
        code = cli.main(args=args, prog_name="gpuops", standalone_mode=False)
    except GpuopsError as error:
        _explain(error, as_json="--json" in args)
        _raise_in_debug(args)
        code = error.exit_code
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.format_message())
        code = 0
    except click.UsageError as error:
        hint = f"{error.ctx.command_path} --help" if error.ctx else "gpuops --help"
        if isinstance(error, click.NoSuchOption) and error.option_name in {"--sandbox", "--debug"}:
            hint = f"Put it before the command: gpuops {error.option_name} …"
        _explain(BadInput(error.format_message(), next_step=hint), as_json="--json" in args)
        code = BadInput.exit_code
    except click.Abort:
        screen.say("Interrupted. What runs, and what it costs: gpuops status", err=True)
        code = _INTERRUPTED_EXIT_CODE
    except BrokenPipeError:
        raise
    except OSError as error:
        _raise_in_debug(args)
        _explain(
            LocalTrouble(
                f"This computer refused: {error}.",
                left_behind="It is not known what was left running: `gpuops status` shows it.",
                next_step="Mend that (a full disk? permissions?), then type the command again.",
            )
        )
        code = LocalTrouble.exit_code
    except Exception as error:
        _raise_in_debug(args)
        _explain(
            Bug(
                f"This is a bug in gpuops: {type(error).__name__}: {error}",
                left_behind="It is not known what was left running: `gpuops status` shows it.",
                next_step="Run the command again with --debug right after `gpuops`, and report what it prints.",
            )
        )
        code = Bug.exit_code
    return code if isinstance(code, int) else 0


def _raise_in_debug(args: list[str]) -> None:
    if "--debug" in args:
        raise  # the error that is being handled


def _explain(error: GpuopsError, *, as_json: bool = False) -> None:
    if as_json:
        import json

        fields = {name: getattr(error, name) for name in ("id", "exit_code", "what", "left_behind", "next_step")}
        click.echo(json.dumps({"error": fields}, indent=1))
        return
    for label, text in (("Error", error.what), ("Left behind", error.left_behind), ("Next", error.next_step)):
        if text:
            click.secho(f"{label}: ", err=True, nl=False, bold=True, fg="red" if label == "Error" else None)
            screen.say(text, err=True)
