"""The suite's guard, tried on a suite of four tests that break its rules, with a home folder that stands for yours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

_CHECKOUT = Path(__file__).resolve().parents[1]
_OFFENCES = """
import contextlib, os, socket, subprocess, sys
from pathlib import Path

THEIRS = Path(os.environ["THEIRS"])

def test_writes():
    with contextlib.suppress(Exception):
        (THEIRS / ".ssh" / "config").write_text("mine now")

def test_lets_another_program_write():
    subprocess.run(["sh", "-c", f"echo >> {THEIRS}/.aws/config"], check=True)

def test_connects():
    with contextlib.suppress(Exception):
        socket.create_connection(("192.0.2.1", 80), timeout=1)

def test_lets_a_child_connect():
    code = "import socket; socket.create_connection(('example.com', 80), timeout=1)"
    subprocess.run([sys.executable, "-c", code], stderr=subprocess.DEVNULL)

def test_keeps_the_rules(tmp_path):
    (tmp_path / "mine").write_text("mine")
    with socket.create_server(("127.0.0.1", 0)) as server:
        socket.create_connection(server.getsockname()).close()
"""


def test_the_suite_fails_if_it_touches_the_users_home_or_an_address_outside_this_computer(tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    for folder, file in ((".ssh", "config"), (".aws", "config")):
        (theirs / folder).mkdir(parents=True)
        (theirs / folder / file).write_text("theirs")
    (tmp_path / "suite").mkdir()
    (tmp_path / "suite" / "test_offences.py").write_text(_OFFENCES)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GUARD_", "PYTEST_"))}
    options = ["-p", "tests.conftest", "-p", "no:cacheprovider", f"--rootdir={tmp_path}", "-c", os.devnull, "-rA", "-q"]
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(tmp_path / "suite")],
        cwd=_CHECKOUT,
        env={**environment, "HOME": str(theirs), "THEIRS": str(theirs)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    outcomes = {
        line.rpartition("::")[2].split()[0]: line.split()[0] for line in ran.stdout.splitlines() if "::" in line
    }
    assert outcomes == {
        "test_writes": "ERROR",
        "test_lets_another_program_write": "ERROR",
        "test_connects": "ERROR",
        "test_lets_a_child_connect": "ERROR",
        "test_keeps_the_rules": "PASSED",
    }, ran.stdout
    assert (theirs / ".ssh" / "config").read_text() == "theirs"
    for named in (".ssh/config", "192.0.2.1", "example.com"):
        assert named in ran.stdout


def test_a_process_of_the_suite_has_a_home_of_its_own_and_no_settings_of_the_persons() -> None:
    code = (
        "import os, pathlib; print(pathlib.Path.home(), [n for n in os.environ if n.startswith(('AWS_', 'GPUOPS_'))])"
    )
    home, names = subprocess.check_output([sys.executable, "-c", code], text=True).strip().split(" ", 1)
    assert home == os.environ["HOME"]
    assert home not in {str(Path(folder).parent) for folder in os.environ["GUARD_FOLDERS"].split(os.pathsep)}
    assert names == "['AWS_EC2_METADATA_DISABLED']"
