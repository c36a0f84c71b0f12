"""Nothing that a machine started outlives it, and nothing of the computer's can be reached from it."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.sandbox.machines import PATIENCE_S, Machine, machine_in, namespaces_are_allowed, until

# Forks twice, makes a session of its own, forgets its environment, shuts its ears, and holds a pipe while it lives.
ESCAPE = """python3 - <<'END'
import os, signal
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        pipe = os.open("pipe", os.O_WRONLY)
        os.dup2(pipe, 1), os.dup2(pipe, 2), os.close(0)
        for number in (signal.SIGHUP, signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        os.execve("/bin/sh", ["sh", "-c", "echo alive; exec sleep 1000"], {})
END"""


@pytest.fixture(params=[True, False], ids=["namespaces", "no-namespaces"])
def machine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Machine]:
    if request.param and not namespaces_are_allowed():
        pytest.skip("this computer's kernel doesn't allow user namespaces here")
    with machine_in(tmp_path, namespaces=request.param) as machine:
        machine.start().wait_for_ssh()
        isolated = b"operating_system" in machine.run("tr '\\0' ' ' < /proc/1/cmdline").stdout
        assert isolated == request.param
        yield machine


def stop(machine: Machine) -> int:
    return machine.stop()


def power_off(machine: Machine) -> int:
    machine.run("sudo poweroff")
    return machine.ended()


def lose_the_cloud(machine: Machine) -> int:
    assert machine.process and machine.process.stdin
    machine.process.stdin.close()
    return machine.ended()


def kill_the_machine(machine: Machine) -> int:
    assert machine.process
    machine.process.kill()
    return machine.ended()


@pytest.mark.parametrize(
    ("end", "exit_code"), [(stop, 1), (power_off, 0), (lose_the_cloud, 1), (kill_the_machine, -signal.SIGKILL)]
)
def test_a_process_that_did_all_to_escape_dies_with_its_machine(
    machine: Machine, end: Callable[[Machine], int], exit_code: int
) -> None:
    pipe = open_pipe(machine)
    assert machine.run(ESCAPE).returncode == 0
    assert read(pipe) == b"alive\n"
    assert end(machine) == exit_code
    assert read(pipe) == b"", "somebody still holds the pipe"
    os.close(pipe)


def test_processes_that_breed_die_too(machine: Machine) -> None:
    pipe = open_pipe(machine)
    machine.run("(breed() { echo; sleep 0.01; breed & }; breed; breed; breed) > pipe 2>&1 < /dev/null &")
    assert read(pipe)
    assert machine.stop() == 1
    until(lambda: read(pipe) == b"", "the last process is gone")
    os.close(pipe)


def test_a_halt_ends_what_escaped_as_well(machine: Machine) -> None:
    pipe = open_pipe(machine)
    machine.run(ESCAPE)
    assert read(pipe) == b"alive\n"
    machine.run("sudo halt")
    assert read(pipe) == b""
    os.close(pipe)
    assert machine.process and machine.process.poll() is None


def open_pipe(machine: Machine) -> int:
    """The reading end of a named pipe on the machine's disk: it ends when no process holds the other end any more."""
    os.mkfifo(machine.home / "pipe")
    return os.open(machine.home / "pipe", os.O_RDONLY | os.O_NONBLOCK)


def read(pipe: int) -> bytes:
    ready, _, _ = select.select([pipe], [], [], PATIENCE_S)
    assert ready, "the pipe is still held and silent"
    return os.read(pipe, 1 << 16)


@pytest.fixture
def isolated(tmp_path: Path) -> Iterator[Machine]:
    if not namespaces_are_allowed():
        pytest.skip("this computer's kernel doesn't allow user namespaces here")
    with machine_in(tmp_path) as machine:
        yield machine.start().wait_for_ssh()


def test_the_computers_processes_are_neither_seen_nor_killed(isolated: Machine) -> None:
    with subprocess.Popen(["sleep", "100"]) as bystander:
        assert f" {bystander.pid} " not in isolated.run("ps -e -o pid= | tr '\\n' ' '").stdout.decode()
        # Everything that it may, on a line that dies of it.
        isolated.run("kill -9 -1")
        assert bystander.poll() is None
        assert isolated.run("echo $(id -un) at $HOME").stdout.decode().strip() == f"ubuntu at {isolated.home}"
        bystander.kill()


def test_the_machines_user_is_not_root_even_where_the_sandboxs_is(isolated: Machine) -> None:
    assert isolated.run("id -u; whoami; echo ~ubuntu").stdout.decode().split() == ["1000", "ubuntu", str(isolated.home)]
    isolated.run("echo no > secret; chmod 400 secret")
    assert isolated.run("echo yes > secret").returncode == 1
    assert isolated.run("grep CapEff /proc/self/status").stdout.split()[1].strip(b"0") == b""


def test_the_computers_files_can_be_read_and_not_changed(tmp_path: Path) -> None:
    if not namespaces_are_allowed():
        pytest.skip("this computer's kernel doesn't allow user namespaces here")
    precious = tmp_path / "precious"
    precious.write_text("as it was")
    with machine_in(tmp_path / "cloud", namespaces=True) as machine:
        machine.start().wait_for_ssh()
        assert machine.run(f"cat '{precious}'").stdout == b"as it was"
        for attempt in (f"echo gone > '{precious}'", f"rm -f '{precious}'", f"touch '{tmp_path}/new'"):
            assert b"Read-only file system" in machine.run(attempt).stderr
        assert machine.run("echo mine > ~/mine && cat ~/mine && touch /dev/shm/mine").stdout == b"mine\n"
    assert precious.read_text() == "as it was"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cloud", "precious"]
