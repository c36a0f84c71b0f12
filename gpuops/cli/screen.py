"""What a person sees while something is going on: a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import click

from gpuops.errors import NotConfirmed

if TYPE_CHECKING:
    from rich.status import Status


class Progress:
    """Steps, told one after the other. A context manager: the step under way when it ends is marked as done."""

    def __init__(self) -> None:
        self._live: Status | None = None
        self._step = ""

    def __enter__(self) -> Progress:
        return self

    def tell(self, step: str) -> None:
        """The next step has begun."""
        if not sys.stderr.isatty():
            click.echo(step, err=True)
            return
        self._finish("✓")
        self._step = step
        if self._live is None:
            from rich.console import Console

            self._live = Console(stderr=True).status(step)
            self._live.start()
        self._live.update(step)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish("✓" if error is None else "✗")
        self.pause()

    def show(self, output: bytes) -> None:
        """Pass on what the job on the machine says, as it says it."""
        self._finish("✓")
        self.pause()
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()

    def pause(self) -> None:
        """Give the terminal back, for a question or another program."""
        if self._live:
            self._live.stop()
            self._live = None

    def _finish(self, mark: str) -> None:
        if self._live and self._step:
            self._live.console.print(f"{mark} {self._step}", highlight=False, markup=False)
            self._step = ""


def ask(question: str, *, yes: bool, flag: str = "-y") -> None:
    """Go on only with a yes. Raises `NotConfirmed` on a no, and where there is no one to ask."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise NotConfirmed(
            f"{question} There is no terminal to answer on.",
            left_behind="Nothing was changed.",
            next_step=f"Give {flag} to answer yes beforehand.",
        )
    if not click.confirm(question, err=True):
        raise NotConfirmed("Not confirmed.", left_behind="Nothing was changed.")


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns, the first row being the headings."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
