"""The command line: argv in, one call, an exit code out (docs/trainer.md has the table)."""

import argparse
import contextlib
import io
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import FrameType

import trainer
from trainer import describe, recipe
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
    from trainer.fit import fit
    from trainer.opening import Options
    from trainer.store import default_cache

    with _stop_signals() as check_stop:
        options = Options(
            source=arguments.data,
            out=arguments.out,
            device=place,
            workers=_workers(arguments.workers),
            cache=arguments.cache or default_cache(),
            strict=arguments.strict,
            resume=arguments.resume,
            exact=arguments.exact,
            given_metrics=arguments.metric,
            checkpoint_every_s=arguments.checkpoint_every,
            check_stop=check_stop,
        )
        fit(chosen, options)


def _recipes(arguments: argparse.Namespace) -> None:
    for path in recipe.shipped():
        print(f"{path.stem:<18} {recipe.load(path.stem).about}")


def _describe(arguments: argparse.Namespace) -> None:
    for line in describe.lines(recipe.load(arguments.recipe, arguments.set), arguments.images):
        print(line)


def _summary(arguments: argparse.Namespace) -> None:
    chosen = recipe.load(arguments.recipe, arguments.set)
    from trainer import models

    network = models.build(chosen.arch, arguments.classes, chosen.head)
    models.check(network, chosen)
    network.freeze_to(chosen.stages[0].freeze_to)
    print("\n".join(models.lines(network, chosen.stages[0].size_px)))


def _data(arguments: argparse.Namespace) -> None:
    options = recipe.load(arguments.recipe, arguments.set).data
    from trainer.data import inspect

    print("\n".join(inspect.run(arguments.folder, options, _workers(arguments.workers))))


def _predict(arguments: argparse.Namespace) -> None:
    import torch

    from trainer import predict, trained
    from trainer.rundir import write_atomically

    ready = trained.load(arguments.run_dir, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    tta = ready.description.tta if arguments.tta is None else arguments.tta
    table = io.StringIO(newline="")
    lost = predict.predict(ready, arguments.images, tta, _workers(arguments.workers), table)
    if arguments.out is None:
        print(table.getvalue(), end="")
    else:
        write_atomically(arguments.out, table.getvalue().encode())
    predict.explain(lost)


def _benchmark(arguments: argparse.Namespace) -> None:
    chosen = recipe.load(arguments.recipe, arguments.set)
    if arguments.weights is not None:
        chosen = replace(chosen, pretrained=True if arguments.weights == "imagenet" else arguments.weights)

    from trainer import device

    place = device.choose(arguments.allow_cpu)
    from trainer import benchmark
    from trainer.opening import Options
    from trainer.rundir import write_atomically
    from trainer.store import default_cache

    options = Options(
        source=arguments.data,
        out=Path(),
        device=place,
        workers=_workers(arguments.workers),
        cache=arguments.cache or default_cache(),
    )
    found = benchmark.benchmark(chosen, options, arguments.stage, arguments.steps)
    print("\n".join(found.lines()))
    if arguments.json is not None:
        write_atomically(arguments.json, json.dumps(found.values(), indent=2).encode())


def _export(arguments: argparse.Namespace) -> None:
    import torch

    from trainer import onnx_export, trained

    onnx_export.export(trained.load(arguments.run_dir, torch.device("cpu")), arguments.file)
    print(f"written: {arguments.file}")


def _workers(asked: int | None) -> int:
    """One core is left to the network: on two, threads that fight over them took twice as long (digits, 2 cores)."""
    from trainer import device

    return asked if asked is not None else min(max(device.usable_cores() - 1, 1), 8)


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
    fit.add_argument(
        "--data", default="", metavar="PATH", help="a folder of images, or a built-in set: digits, cifar10 …"
    )
    fit.add_argument(
        "--out", required=True, type=Path, metavar="DIR", help="the run directory; results land in DIR/out"
    )
    fit.add_argument(
        "--cache", type=Path, metavar="DIR", help="resized images, activations and measurements; default: in ~/.cache"
    )
    fit.add_argument("--weights", metavar="FILE", help="start from this .safetensors file, or: imagenet")
    fit.add_argument("--seed", type=_whole, metavar="N", help="instead of the recipe's")
    fit.add_argument(
        "--workers", type=_whole, metavar="N", help="threads that prepare images; default: all cores but one, at most 8"
    )
    fit.add_argument("--allow-cpu", action="store_true", help="train on the CPU where no GPU is usable")
    fit.add_argument("--strict", action="store_true", help="refuse to train when an image cannot be decoded")
    fit.add_argument("--resume", action="store_true", help="go on from the last checkpoint in DIR, if there is one")
    fit.add_argument(
        "--exact", action="store_true", help="refuse to resume where the last digits could differ from an unbroken run"
    )
    fit.add_argument(
        "--checkpoint-every", type=float, default=60.0, metavar="SECONDS", help="what a power cut may cost; default: 60"
    )
    fit.add_argument(
        "--metric", action="append", default=[], metavar="PACKAGE.MODULE:NAME", help="a score of your own: a function"
    )
    fit.add_argument("--debug", action="store_true", help="show the traceback of an error")

    benchmark = commands.add_parser("benchmark", help="measure a stage: loader, step, both together")
    benchmark.set_defaults(run=_benchmark)
    benchmark.add_argument("recipe", metavar="RECIPE")
    benchmark.add_argument("--data", default="", metavar="PATH", help="a folder of images, or a built-in set")
    benchmark.add_argument("--cache", type=Path, metavar="DIR", help="as of fit, which then finds what is made here")
    benchmark.add_argument("--weights", metavar="FILE", help="start from this .safetensors file, or: imagenet")
    benchmark.add_argument("--workers", type=_whole, metavar="N", help="threads that prepare images; as of fit")
    benchmark.add_argument("--allow-cpu", action="store_true", help="measure the CPU where no GPU is usable")
    benchmark.add_argument("--stage", type=_whole, default=0, metavar="N", help="as `describe` counts; default: 0")
    benchmark.add_argument("--steps", type=_positive, default=20, metavar="K", help="of each measurement; default: 20")
    benchmark.add_argument("--json", type=Path, metavar="FILE", help="write the numbers there too")

    recipes = commands.add_parser("recipes", help="list the shipped recipes")
    recipes.set_defaults(run=_recipes)

    described = commands.add_parser("describe", help="print a recipe's stages")
    described.set_defaults(run=_describe)
    described.add_argument("recipe", metavar="RECIPE")
    described.add_argument("--images", type=_whole, metavar="N", help="training images: shows the number of steps")

    summary = commands.add_parser("summary", help="print a recipe's network, layer by layer")
    summary.set_defaults(run=_summary)
    summary.add_argument("recipe", metavar="RECIPE")
    summary.add_argument("--classes", type=_whole, default=2, metavar="N", help="default: 2")

    predict = commands.add_parser("predict", help="classify images with a run's network: a CSV table")
    predict.set_defaults(run=_predict)
    predict.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory, or a copy of its out/")
    predict.add_argument("images", nargs="+", type=Path, metavar="IMAGE", help="files and folders")
    predict.add_argument("--out", type=Path, metavar="FILE", help="instead of the terminal")
    predict.add_argument("--tta", type=_whole, metavar="N", help="augmented views; default: as many as in the run")
    predict.add_argument("--workers", type=_whole, metavar="N", help="threads; default: all cores but one, at most 8")

    export = commands.add_parser("export", help="write a run's network as an ONNX file")
    export.set_defaults(run=_export)
    export.add_argument("run_dir", type=Path, metavar="RUN", help="a run directory, or a copy of its out/")
    export.add_argument("file", type=Path, metavar="FILE.onnx")

    data = commands.add_parser("data", help="look into a set: classes, sizes, damaged files, duplicates")
    data.set_defaults(run=_data)
    data.add_argument("folder", metavar="PATH", help="a folder of images, or a built-in set")
    data.add_argument("--recipe", default="first_model", metavar="RECIPE", help="whose [data] table is used")
    data.add_argument("--workers", type=_whole, metavar="N", help="threads; default: all cores but one, at most 8")

    for command in (fit, benchmark, described, summary, data):
        command.add_argument(
            "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="override the recipe"
        )
    return parser


def _whole(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 on")
    return int(text)


def _positive(text: str) -> int:
    if _whole(text) == 0:
        raise argparse.ArgumentTypeError("0 is too few")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
