"""How long `gpuops --help` takes, beside bare Python and, where asked for, `dstack --help`; and the install size.

    python benchmarks/help.py [--runs 10] [--dstack VENV] [--size]

The programs take turns, so that whatever else the computer is doing meets all of them. `--size` makes two throwaway
environments with uv and installs gpuops (no extras) into one of them. Prints JSON, with hardware and versions.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

from computer import hardware

_CHECKOUT = Path(__file__).resolve().parents[1]
_BIN = Path(sys.executable).parent


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the start of the command line, and the size of its install.")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--dstack", type=Path, metavar="VENV", help="an environment with dstack, to be measured beside")
    parser.add_argument("--size", action="store_true", help="measure the base install too (needs uv and its cache)")
    options = parser.parse_args()

    commands = {"python -c pass": [sys.executable, "-c", "pass"], "gpuops --help": [str(_BIN / "gpuops"), "--help"]}
    if options.dstack:
        commands["dstack --help"] = [str(options.dstack / "bin" / "dstack"), "--help"]
    seconds = _measure(commands, options.runs)
    medians = {name: round(statistics.median(times), 4) for name, times in seconds.items()}
    report = {
        "what": "seconds from start to exit, median; all runs after one warm-up each, taking turns",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": _versions(options.dstack),
        "runs": options.runs,
        "median_s": medians,
        "spread_s": {name: [round(min(times), 4), round(max(times), 4)] for name, times in seconds.items()},
    }
    if options.dstack:
        report["gpuops_to_dstack"] = round(medians["gpuops --help"] / medians["dstack --help"], 4)
    if options.size:
        report["base_install_mb"] = _install_size()
    print(json.dumps(report, indent=1))


def _measure(commands: dict[str, list[str]], runs: int) -> dict[str, list[float]]:
    for argv in commands.values():
        _run(argv)
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, argv in commands.items():
            began = time.perf_counter()
            _run(argv)
            seconds[name].append(time.perf_counter() - began)
    return seconds


def _run(argv: Sequence[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def _install_size() -> dict[str, object]:
    """Megabytes (10^6 bytes) on disk, without bytecode and net of an empty environment: in all, and by distribution."""
    uv = str(_BIN / "uv")
    with tempfile.TemporaryDirectory(prefix="gpuops-size.") as folder:
        sizes = {}
        for name, wanted in (("empty", []), ("gpuops", [str(_CHECKOUT)])):
            venv = Path(folder) / name
            subprocess.run([uv, "venv", "-q", "--python", sys.executable, venv], check=True)
            if wanted:
                python = venv / "bin" / "python"
                subprocess.run(
                    [uv, "pip", "install", "-q", "--link-mode=copy", "--python", python, *wanted], check=True
                )
            sizes[name] = sum(_size(path) for path in venv.rglob("*"))
        packages = {
            record.parent.name.partition("-")[0]: sum(
                _size(record.parents[1] / line.split(",")[0]) for line in _lines(record)
            )
            for record in (Path(folder) / "gpuops").rglob("*.dist-info/RECORD")
        }
    largest = sorted(packages.items(), key=lambda item: -item[1])
    return {
        "net": round((sizes["gpuops"] - sizes["empty"]) / 1e6, 1),
        "by_distribution": {name: round(size / 1e6, 1) for name, size in largest if size >= 50_000},
    }


def _size(path: Path) -> int:
    return path.lstat().st_size if path.is_file() and path.suffix != ".pyc" else 0


def _lines(record: Path) -> list[str]:
    return record.read_text(encoding="utf-8").splitlines()


def _versions(dstack: Path | None) -> dict[str, str]:
    found = {"python": platform.python_version(), "gpuops": version("gpuops"), "click": version("click")}
    if dstack:
        code = "from importlib.metadata import version; print(version('dstack'))"
        found["dstack"] = subprocess.check_output([dstack / "bin" / "python", "-c", code], text=True).strip()
    return found


if __name__ == "__main__":
    main()
