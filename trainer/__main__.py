"""The command line: argv in, one call, an exit code out (docs/trainer.md has the table)."""

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import trainer
from trainer import recipe, schedules
from trainer.errors import Stopped, TrainerError


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command: its exit code. A refusal is one line on stderr; any other error is a bug, with its traceback."""
    arguments = _parser().parse_args(argv)
    try:
        arguments.run(arguments)
    except TrainerError as error:
        if getattr(arguments, "debug", False):
            raise
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _fit(arguments: argparse.Namespace) -> None:
    chosen = recipe.load(arguments.recipe, arguments.set)
    if arguments.seed is not None:
        chosen = replace(chosen, seed=arguments.seed)
    if arguments.weights is not None:
        chosen = replace(chosen, pretrained=True if arguments.weights == "imagenet" else arguments.weights)

    # torch alone is imported before the GPU is checked: a machine without one is refused within seconds.
    from trainer import device

    place = device.choose(arguments.allow_cpu)
    if place.torch_name == "cpu":
        print("training on the CPU, as --allow-cpu says", flush=True)

    from trainer.fit import fit

    # One core is left to the network: on two, threads that fight over them took twice as long (digits, 2 cores).
    workers = arguments.workers if arguments.workers is not None else min(max(device.usable_cores() - 1, 1), 8)
    with _stop_signals() as check_stop:
        fit(
            chosen,
            source=arguments.data,
            out=arguments.out,
            device=place,
            workers=workers,
            strict=arguments.strict,
            resume=arguments.resume,
            check_stop=check_stop,
        )


def _recipes(arguments: argparse.Namespace) -> None:
    for path in recipe.shipped():
        print(f"{path.stem:<18} {recipe.load(path.stem).about}")


def _describe(arguments: argparse.Namespace) -> None:
    chosen = recipe.load(arguments.recipe, arguments.set)
    pretrained = "ImageNet weights" if chosen.pretrained is True else chosen.pretrained or "random weights"
    print(f"{chosen.name}: {chosen.about}")
    print(f"{chosen.arch}, {pretrained}, {chosen.total_epochs} epochs, seed {chosen.seed}")
    for index, stage in enumerate(chosen.stages):
        frozen = {0: "all layer groups", -1: "the head"}.get(stage.freeze_to, f"layer groups from {stage.freeze_to}")
        varied = "augmented" if stage.augment else "not augmented"
        how = f"{frozen}, {stage.size_px} px, {varied}, batches of {stage.batch_size}, {stage.optimizer}"
        print(f"\nstage {index} {stage.name}: {how}")
        starts = schedules.cycle_starts(stage.cycles, stage.first_cycle_epochs, stage.cycle_mult)
        for start, end in zip(starts, [*starts[1:], stage.total_epochs], strict=True):
            rate = " ".join(f"{lr:g}" for lr in stage.lr) if isinstance(stage.lr, tuple) else f"{stage.lr:g}"
            spread = f" in the head, {stage.spread:g} × less per earlier group" if stage.spread > 1 else ""
            print(f"  epochs {start + 1}–{end}: lr {rate}{spread}, falling along a cosine to 0")


@contextlib.contextmanager
def _stop_signals() -> Iterator[Callable[[], None]]:
    """A function that raises Stopped once SIGINT or SIGTERM has come; a second signal ends the process at once."""
    received: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        received.append(number)
        signal.signal(number, signal.SIG_DFL)

    def check_stop() -> None:
        if received:
            raise Stopped(received[0])

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield check_stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m trainer", description=trainer.__doc__.split("\n\n")[0])
    parser.add_argument(
        "--version", action="version", version=f"trainer {trainer.__version__}, contract {trainer.CONTRACT}"
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    fit = commands.add_parser("fit", help="train what a recipe says")
    fit.set_defaults(run=_fit)
    fit.add_argument("recipe", metavar="RECIPE", help="a shipped recipe's name, or the path of a TOML file")
    fit.add_argument("--data", default="", metavar="PATH", help="a folder of images, or the built-in set: digits")
    fit.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the run directory; results land in DIR/out"
    )
    fit.add_argument("--weights", metavar="FILE", help="start from this .safetensors file, or: imagenet")
    fit.add_argument("--seed", type=_whole, metavar="N", help="instead of the recipe's")
    fit.add_argument(
        "--workers", type=_whole, metavar="N", help="threads that prepare images; default: all cores but one, at most 8"
    )
    fit.add_argument("--allow-cpu", action="store_true", help="train on the CPU where no GPU is usable")
    fit.add_argument("--strict", action="store_true", help="refuse to train when an image cannot be decoded")
    fit.add_argument(
        "--resume", action="store_true", help="go on after the last finished epoch in DIR, if there is one"
    )
    fit.add_argument("--debug", action="store_true", help="show the traceback of an error")

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.set_defaults(run=_recipes)

    describe = commands.add_parser("describe", help="print a recipe's stages")
    describe.set_defaults(run=_describe)
    describe.add_argument("recipe", metavar="RECIPE")

    for command in (fit, describe):
        command.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the recipe"
        )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
