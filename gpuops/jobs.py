"""A detached job on a machine: check the machine, ship, start, follow, collect. Over any transport.

What runs there is started by one file of ours, `job_wrapper.py`; everything is asked of that file too, so the machine
itself says what is true.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from gpuops import results, sync
from gpuops.errors import (
    BadData,
    BadInput,
    GpuopsError,
    JobRunning,
    RemoteFileMissing,
    RunError,
    UnfitMachine,
    UnknownRecipe,
)
from gpuops.render import render
from gpuops.runs import Run, RunStore, from_json, is_id
from gpuops.sync import Route
from gpuops.transports import Transport, quote

INTERPRETERS = ("/opt/pytorch/bin/python", "python3", "python")
"""Where machines keep the Python that has torch: the Deep Learning AMIs, anything on the PATH."""

_WRAPPER = Path(__file__).with_name("job_wrapper.py")
_CONTRACT = 1  # of the trainer's command line and run directory
_BUSY_EXIT_CODE = 75  # job_wrapper.BUSY_EXIT_CODE
_STARTED_WITHIN_S = 20
_CLAIM_EVERY_S = 1.0

_OLDEST_PYTHON = (3, 10)
_NEEDED = ("torch", "torchvision", "torchmetrics", "safetensors", "numpy", "PIL", "matplotlib", "sklearn")
_PROBE = (
    "import importlib.util as u, json, sys; "
    f"print(json.dumps([sys.executable, sys.version_info[:3], [m for m in {_NEEDED!r} if u.find_spec(m) is None]]))"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """What the person asked to be trained; everything in it lies on this computer.

    `recipe` is a TOML file; `data` a folder, or the name of a built-in set; `weights` a safetensors file, "imagenet",
    or None; `options` go to the trainer as they are.
    """

    recipe: Path
    data: Path | str
    weights: Path | str | None = None
    options: tuple[str, ...] = ()


def trainer_files() -> sync.FileSet:
    """The trainer that belongs to this gpuops: the package beside it, never whatever else is called `trainer`."""
    root = Path(__file__).parent.parent / "trainer"
    text = (root / "__init__.py").read_text(encoding="utf-8") if root.is_dir() else ""
    if f"CONTRACT = {_CONTRACT}\n" not in text:
        raise RunError(f"{root} is not the trainer of this gpuops.", next_step="Install gpuops anew.")
    files = sync.code(root)
    kept = tuple(path for path in files.paths if "__pycache__" not in path)
    return sync.FileSet(root=root, paths=kept, bytes=sum((root / path).stat().st_size for path in kept))


def recipe_file(name: str) -> Path:
    """The TOML file of a shipped recipe, or the one that `name` is a path to. Raises `UnknownRecipe`."""
    shipped = {path.stem: path for path in sorted((trainer_files().root / "recipes").glob("*.toml"))}
    if name in shipped:
        return shipped[name]
    path = Path(name)
    if path.suffix == ".toml" and path.is_file():
        return path
    raise UnknownRecipe(name, shipped)


def recipe_text(path: Path) -> bytes:
    """The recipe as it goes to the machine. There it lies in a file of another name, so its own name is put into it."""
    text = path.read_bytes()
    before_tables = re.split(rb"^\s*\[", text, maxsplit=1, flags=re.M)[0]
    if re.search(rb"^\s*name\s*=", before_tables, flags=re.M):
        return text
    return f"name = {json.dumps(path.stem)}\n".encode() + text


def digest(data: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def check(training: Training) -> None:
    """Raises `BadInput` for whatever is wrong and can be known here, before anything costs money."""
    if isinstance(training.data, Path):
        sync.data(training.data)
    if isinstance(training.weights, Path):
        weights_file(training.weights)
    overrides = [word for flag, value in pairwise(training.options) if flag == "--set" for word in (flag, value)]
    argv = [sys.executable, "-m", "trainer", "describe", str(training.recipe), *overrides]
    environment = os.environ | {"PYTHONPATH": str(trainer_files().root.parent), "PYTHONDONTWRITEBYTECODE": "1"}
    described = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False)
    if described.returncode != 0:
        problem = described.stderr.strip().removeprefix("error: ")
        raise BadInput(f"The recipe can't be used: {problem}", left_behind="Nothing was started.")


def find_python(line: Transport, machine_name: str) -> str:
    """The machine's own interpreter that can run the trainer; nothing is shipped yet. Raises `UnfitMachine`."""
    seen = []
    for candidate in INTERPRETERS:
        probe = line.run([candidate, "-c", _PROBE], check=False, timeout_s=60)
        if probe.exit_code != 0:
            continue
        executable, version, missing = json.loads(probe.stdout.strip().splitlines()[-1])
        if tuple(version[:2]) < _OLDEST_PYTHON:
            seen.append(f"{executable} is Python {version[0]}.{version[1]}")
        elif missing:
            seen.append(f"{executable} lacks {', '.join(missing)}")
        else:
            return str(executable)
    raise UnfitMachine(
        f"{machine_name} has no Python {_OLDEST_PYTHON[0]}.{_OLDEST_PYTHON[1]} or newer with what the trainer needs"
        + (f": {'; '.join(seen)}." if seen else "."),
        left_behind="Nothing was shipped.",
        next_step=f"gpuops up {machine_name}; gpuops ssh {machine_name} "
        "'python3 -m pip install torch torchvision torchmetrics safetensors "
        "matplotlib scikit-learn'",
    )


def refuse_if_busy(line: Transport, python: str) -> None:
    """Raises `JobRunning`: one machine runs one job at a time."""
    for job in on_machine(line, python):
        if job["state"] in {"starting", "running"}:
            raise JobRunning(
                f"Run {job['id']} is still going on there.",
                left_behind="It goes on; nothing was started.",
                next_step=f"gpuops attach {job['id']}",
            )


def ship(route: Route, training: Training, tell: Callable[[str], None]) -> dict[str, str]:
    """Send trainer, data and weights to the machine; where they lie there, by what they are, relative to its home."""
    with _in_use(route.line):
        return _ship(route, training, tell)


def _ship(route: Route, training: Training, tell: Callable[[str], None]) -> dict[str, str]:
    trainer = trainer_files()
    digest = trainer.digest()
    places = {"trainer": f"gpuops/trainer/{digest[:16]}", "trainer_digest": digest, "data_digest": ""}
    tell(f"Shipping the trainer ({len(trainer.paths)} files)")
    route.push(trainer, f"{places['trainer']}/trainer")
    if isinstance(training.data, Path):
        files = sync.data(training.data)
        places["data_digest"] = files.listing_digest()
        # rsync before 3.2.4, and macOS's, let the machine's shell read this path.
        name = re.sub(r"[^A-Za-z0-9._-]", "_", training.data.resolve().name)
        places["data"] = f"gpuops/data/{name}-{places['data_digest'][:16]}"
        tell(f"Shipping {len(files.paths):,} files of data ({files.bytes / 1e6:,.1f} MB)")
        route.push(files, places["data"])
    if isinstance(training.weights, Path):
        weights = weights_file(training.weights)
        folder = f"gpuops/data/weights-{weights.listing_digest()[:16]}"
        tell(f"Shipping {training.weights.name} ({weights.bytes / 1e6:,.1f} MB)")
        route.push(weights, folder)
        places["weights"] = f"{folder}/{training.weights.name}"
    return places


def weights_file(path: Path) -> sync.FileSet:
    if not path.is_file():
        raise BadData(f"There is no weights file {path}.", left_behind="Nothing was started.")
    return sync.FileSet(root=path.parent, paths=(path.name,), bytes=path.stat().st_size)


def command(training: Training, python: str, places: dict[str, str]) -> tuple[str, ...]:
    """The trainer's argv, run in the run's folder on the machine."""
    up = "../../.."  # from gpuops/runs/ID to the home folder
    argv = [python, "-m", "trainer", "fit", "recipe.toml", "--out", "."]
    argv += ["--data", f"{up}/{places['data']}" if "data" in places else str(training.data)]
    if training.weights is not None:
        argv += ["--weights", f"{up}/{places['weights']}" if "weights" in places else str(training.weights)]
    return (*argv, *training.options)


def start(line: Transport, run: Run, recipe: bytes, places: dict[str, str]) -> None:
    """Write the run's folder there and start its job, detached. Raises `JobRunning`, `RunError`."""
    job = render("job.sh.j2", run_id=run.id, pythonpath=f'"$PWD/../../../{places["trainer"]}"', command=quote(run.argv))
    wrapper = _wrapper(line)
    line.write(f"{run.remote_dir}/recipe.toml", recipe)
    line.write(f"{run.remote_dir}/job.sh", job.encode())
    line.write(f"{run.remote_dir}/run.json", run.json())
    # It has started when it has written its state; what it says before that is kept in wrapper.txt.
    detached = (
        'cd "$1" && { setsid "$2" "$3" run . </dev/null >wrapper.txt 2>&1 & wrapper=$!; } && '
        f"for _ in $(seq {_STARTED_WITHIN_S * 20}); do "
        "[ -e state.json ] && exit 0; "
        "kill -0 $wrapper 2>/dev/null || { wait $wrapper; code=$?; cat wrapper.txt >&2; exit $code; }; sleep 0.05; "
        "done; cat wrapper.txt >&2; exit 1"
    )
    absolute = f"{line.run(['pwd']).stdout.strip()}/{wrapper}"
    started = line.run(["sh", "-c", detached, "sh", run.remote_dir, run.python, absolute], check=False)
    if started.exit_code == _BUSY_EXIT_CODE:
        raise JobRunning(
            "Another job was started there a moment ago.", left_behind="It goes on.", next_step="gpuops attach"
        )
    if started.exit_code != 0:
        raise RunError(
            f"The job did not start: {started.tail}", next_step=f"Look around there: gpuops ssh {run.machine}"
        )


def follow(line: Transport, run: Run, log: BinaryIO, show: Callable[[bytes], None]) -> None:
    """Append what the job says to `log` and `show` it, from where `log` ends, until the job has ended."""
    argv = [run.python, _wrapper(line), "follow", run.remote_dir, str(log.seek(0, 2))]
    line.pipe(argv, sink=_Tee(log, show), check=False)  # type: ignore[arg-type]


def state(line: Transport, run: Run) -> results.Outcome:
    """What the machine says of the job now."""
    answer = json.loads(line.run([run.python, _wrapper(line), "state", run.remote_dir]).stdout)
    return results.Outcome(state=answer["state"], exit_code=answer["exit_code"], reason=answer["reason"])


def on_machine(line: Transport, python: str) -> list[dict[str, object]]:
    """Every run on the machine's disk: its id, state, and whether it is sealed with a manifest."""
    answer: list[dict[str, object]] = json.loads(line.run([python, _wrapper(line), "list"]).stdout)
    return [entry for entry in answer if is_id(str(entry["id"]))]


def adopt(line: Transport, run_id: str, store: RunStore) -> Run | None:
    """A run that the machine has and this computer may not know; None where its run.json never arrived."""
    try:
        data = b"".join(line.read(f"gpuops/runs/{run_id}/run.json"))
    except RemoteFileMissing:
        return None
    run = from_json(data, where=run_id)
    if run.id != run_id:  # the machine's word alone must not choose a folder here
        raise BadData(f"The run in {run_id} on the machine says that it is {run.id}.", left_behind="It stays there.")
    if run_id not in {known.id for known in store.all()}:
        store.add(run)
    return run


def collect(route: Route, run: Run, store: RunStore, now: datetime) -> results.Outcome:
    """Bring an ended run home, verified file by file. Raises `ResultsDamaged`."""
    folder = store.path(run.id)
    line = route.line
    if line.run(["test", "-e", f"{run.remote_dir}/manifest.json"], check=False).exit_code != 0:
        line.run([run.python, _wrapper(line), "seal", run.remote_dir])
    with _in_use(line):
        route.pull(run.remote_dir, folder)
    store.mark_home(run.id, files=results.verify(folder), now=now)
    return results.outcome(folder)


def claim(line: Transport) -> None:
    """Say that the machine is in use, so that an earlier job's grace time starts anew."""
    line.run(["sh", "-c", "mkdir -p gpuops && touch gpuops/in-use"])


@contextlib.contextmanager
def _in_use(line: Transport) -> Iterator[None]:
    """Keep claiming the machine while files travel, which may take longer than its grace time.

    Said from here and again and again, so that it ends with this process, or with the line.
    """
    done = threading.Event()

    def claim_again() -> None:
        with contextlib.suppress(GpuopsError):  # whoever uses the line meets the same
            while not done.wait(_CLAIM_EVERY_S):
                claim(line)

    claim(line)
    claiming = threading.Thread(target=claim_again, daemon=True)
    claiming.start()
    try:
        yield
    finally:
        done.set()
        claiming.join()


def _wrapper(line: Transport) -> str:
    """The wrapper's path on the machine, relative to its home; sent there when it isn't yet."""
    data = _WRAPPER.read_bytes()
    path = f"gpuops/bin/job-{hashlib.sha256(data).hexdigest()[:16]}.py"
    if line.run(["test", "-e", path], check=False).exit_code != 0:
        line.write(path, data)
    return path


class _Tee:
    """A sink that writes to the log and shows it too."""

    def __init__(self, log: BinaryIO, show: Callable[[bytes], None]) -> None:
        self._log, self._show = log, show

    def write(self, data: bytes) -> int:
        self._log.write(data)
        self._log.flush()
        self._show(data)
        return len(data)
