"""What a person sees while something is going on: a live line on a terminal, plain lines in a pipe."""

from __future__ import annotations

import re
import shutil
import sys
import textwrap
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

import click

from gpuops.errors import NotConfirmed

if TYPE_CHECKING:
    from rich.status import Status


_COMMAND = re.compile(
    r"\bgpuops (?=(?:up|status|ssh|cp|notebook|tunnel|down|extend|reap|train|attach|pull|runs|offers|cost|doctor|adopt"
    r"|admit|uninstall)\b)"
)
_called = "gpuops "


def called(prefix: str) -> None:
    """How the commands are to be written that a person is told to type, from here on."""
    global _called
    _called = f"{prefix} "


def say(text: str, *, err: bool = False) -> None:
    click.echo(_COMMAND.sub(_called, text), err=err)


def rows(pairs: Sequence[tuple[str, str]], *, err: bool = False) -> None:
    """Labels and what belongs to them, long texts folded under themselves on a terminal."""
    label_width = max(len(label) for label, _ in pairs)
    stream = sys.stderr if err else sys.stdout
    text_width = max(40, shutil.get_terminal_size().columns - label_width - 5) if stream.isatty() else sys.maxsize
    for label, text in pairs:
        first, *others = textwrap.wrap(text, text_width, break_long_words=False, break_on_hyphens=False) or [""]
        for head, line in ((label, first), *(("", other) for other in others)):
            say(f"  {head:<{label_width}}  {line}".rstrip(), err=err)


class Progress:
    """Steps, told one after the other. A context manager: the step under way when it ends is marked as done."""

    def __init__(self) -> None:
        self._live: Status | None = None
        self._step = ""
        self._ended = False

    def __enter__(self) -> Progress:
        return self

    def tell(self, step: str) -> None:
        """The next step has begun."""
        if self._ended or not sys.stderr.isatty():
            say(step, err=True)
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
        self.done()
        sys.stdout.buffer.write(output)
        sys.stdout.buffer.flush()

    def done(self) -> None:
        """The last step is over, and the terminal is another's."""
        self._finish("✓")
        self.pause()

    def end(self) -> None:
        """The last step is over for good: what is told from here on is news, and nothing is under way."""
        self.done()
        self._ended = True

    def pause(self) -> None:
        """Give the terminal back, for a question or another program."""
        if self._live:
            self._live.stop()
            self._live = None

    def _finish(self, mark: str) -> None:
        if self._live and self._step:
            self._live.console.print(_COMMAND.sub(_called, f"{mark} {self._step}"), highlight=False, markup=False)
            self._step = ""


def ask(question: str, *, yes: bool, flag: str = "-y") -> None:
    """Go on only with a yes. Raises `NotConfirmed` on a no, and where there is no one to ask."""
    if yes:
        return
    if sys.stdin is None or not sys.stdin.isatty():
        raise NotConfirmed(
            f"{question} There is no terminal to answer on.",
            left_behind="Nothing was changed.",
            next_step=f"Give {flag} to answer yes beforehand.",
        )
    if not click.confirm(question, err=True):
        raise NotConfirmed("Not confirmed.", left_behind="Nothing was changed.")


def columns(rows: Sequence[tuple[str, ...]]) -> str:
    """Rows as aligned columns, the first row being the headings; one block each on a terminal too narrow for that."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    if sys.stdout.isatty() and sum(widths) + 2 * len(widths) > shutil.get_terminal_size().columns:
        headings, *others = rows
        label_width = max(map(len, headings))
        blocks = [
            [f"{h.lower():<{label_width}}  {cell}" for h, cell in zip(headings, row, strict=True)] for row in others
        ]
        return "\n\n".join("\n".join(block) for block in blocks)
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )
