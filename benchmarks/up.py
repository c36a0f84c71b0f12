"""What `gpuops up` adds to a cloud's own boot: from the moment the machine's ssh port answers until `up` has returned.

    python benchmarks/up.py [--runs 3] [--boot-seconds 20]

Everything is real but the cloud, which is the sandbox's: an API over HTTP, and machines that take so long to boot. The
port is tried from outside every 10 ms. Prints JSON, with hardware and versions; how many calls of the API `up` made,
by action and in all regions, is counted by the cloud.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import boto3
from computer import hardware

from gpuops import sandbox

_REGION = "us-west-2"
_TYPE = "g4dn.xlarge"
_PORT = 2222  # where the sandbox's machines listen
_TRY_EVERY_S = 0.01
_LOOK_EVERY_S = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure what `gpuops up` adds to the cloud's own boot.")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--boot-seconds", type=float, default=20.0)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory(prefix="gpuops-up.") as name:
        folder = Path(name)
        cloud = sandbox.start(folder / "cloud", boot_seconds=options.boot_seconds)
        try:
            measured = _measure(cloud, folder, options.runs)
        finally:
            sandbox.stop(folder / "cloud")
    report = {
        "what": "`gpuops up -y` as a process: seconds from the first answer of the machine's ssh port to its exit; "
        "where the machine ran before, seconds from start to exit",
        "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "hardware": hardware(),
        "versions": {name: version(name) for name in ("gpuops", "boto3", "paramiko", "moto", "asyncssh")}
        | {"python": platform.python_version()},
        "runs": options.runs,
        "boot_s": options.boot_seconds,
        **{name: _summary(runs) for name, runs in measured.items()},
    }
    print(json.dumps(report, indent=1))


def _measure(cloud: sandbox.Cloud, folder: Path, runs: int) -> dict[str, list[dict[str, Any]]]:
    measured: dict[str, list[dict[str, Any]]] = {"nothing there": [], "stopped": [], "running": []}
    for number in range(runs):
        name = f"bench-{number}"
        home = folder / name
        home.mkdir()
        environment = {
            **os.environ,
            **sandbox.environment(cloud.folder, cloud),
            "GPUOPS_HOME": str(home / "gpuops"),
            "GPUOPS_SSH_CONFIG": str(home / "ssh" / "config"),
            "GPUOPS_NAME": name,
            "GPUOPS_TYPES": _TYPE,
        }
        ec2 = _client(environment)
        measured["nothing there"].append(_up(cloud, home, environment, ec2, name))
        measured["running"].append(_up(cloud, home, environment, None, name))
        _gpuops(home, environment, "down", "-y").communicate()
        measured["stopped"].append(_up(cloud, home, environment, ec2, name))
        _gpuops(home, environment, "down", "-y", "--terminate", "--discard").communicate()
    return measured


def _up(cloud: sandbox.Cloud, home: Path, environment: Mapping[str, str], ec2: Any | None, name: str) -> dict[str, Any]:
    """Seconds from start to exit, seconds after ssh answered (where `ec2` is there to wait for that), and the calls."""
    before = _calls(cloud)
    began = time.perf_counter()
    process = _gpuops(home, environment, "up", "-y")
    answered, looks = _answered(ec2, name, process) if ec2 else (None, 0)
    stdout, stderr = process.communicate()
    ended = time.perf_counter()
    if process.returncode != 0:
        raise SystemExit(stdout + stderr)
    calls = _calls(cloud) - before
    calls["DescribeInstances"] -= looks
    return {"s": ended - began, "after_ssh_s": ended - answered if answered else None, "calls": +calls}


def _answered(ec2: Any, name: str, process: subprocess.Popen[str]) -> tuple[float, int]:
    """When ssh first answered, and how often EC2 had to be asked for the address."""
    looks = 0
    wanted = [
        {"Name": "tag:gpuops:name", "Values": [name]},
        {"Name": "instance-state-name", "Values": ["pending", "running"]},
    ]
    while process.poll() is None:
        looks += 1
        found = ec2.describe_instances(Filters=wanted)["Reservations"]
        host = found[0]["Instances"][0].get("PublicIpAddress") if found else None
        while host and process.poll() is None:
            with contextlib.suppress(OSError), socket.create_connection((host, _PORT), timeout=1):
                return time.perf_counter(), looks
            time.sleep(_TRY_EVERY_S)
        time.sleep(_LOOK_EVERY_S)
    raise SystemExit(f"`up` ended before ssh answered: {process.communicate()}")


def _gpuops(home: Path, environment: Mapping[str, str], *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gpuops", *words],
        env=environment,
        cwd=home,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _client(environment: Mapping[str, str]) -> Any:
    return boto3.client(
        "ec2",
        region_name=_REGION,
        endpoint_url=environment["AWS_ENDPOINT_URL"],
        aws_access_key_id="testing",
        aws_secret_access_key="testing",
    )


def _calls(cloud: sandbox.Cloud) -> Counter[str]:
    with urlopen(f"{cloud.url}/gpuops/calls") as answer:
        return Counter(call["action"] for call in json.load(answer))


def _summary(runs: Sequence[Mapping[str, Any]]) -> dict[str, object]:
    found: dict[str, object] = {"s": _spread([run["s"] for run in runs])}
    after = [run["after_ssh_s"] for run in runs if run["after_ssh_s"] is not None]
    if after:
        found["after_ssh_s"] = _spread(after)
    found["calls"] = [sum(run["calls"].values()) for run in runs]
    found["calls_of_the_last_run"] = dict(runs[-1]["calls"].most_common())
    return found


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(seconds), 3),
        "min": round(min(seconds), 3),
        "max": round(max(seconds), 3),
    }


if __name__ == "__main__":
    main()
