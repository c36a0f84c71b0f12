"""`gpuops ssh`, `cp` and `tunnel` as processes: what gets there and back, what they print and exit with."""

from __future__ import annotations

import contextlib
import http.server
import re
import shutil
import signal
import socket
import subprocess
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from gpuops import host_keys
from gpuops.errors import BadInput, HostKeyChanged, MachineUnreachable, NoSshProgram, PortInUse, StateError
from gpuops.machine import State
from tests.computers import Cloud, Computer, until

pytestmark = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")


def test_ssh_runs_a_command_there_and_exits_as_it_did(computer: Computer) -> None:
    computer.up()
    for words in (("echo here; exit 7",), ("--", "echo here; exit 7")):
        ran = computer.gpuops("ssh", computer.name, *words)
        assert (ran.exit_code, ran.stdout, ran.stderr) == (7, "here\n", "")
    # ssh's own code for failing; this time it was the command's.
    assert computer.gpuops("ssh", computer.name, "exit 255").exit_code == 255
    computer.down()
    said = computer.gpuops("ssh", computer.name, "true").failed(StateError)
    assert f"{computer.name} is stopped." in said
    assert f"Next: gpuops up {computer.name}" in said


@pytest.mark.parametrize("words", [("ssh", "fast-ai"), ("cp", "here", "fast-ai:there")])
def test_without_its_program_a_command_says_how_to_get_it(computer: Computer, words: tuple[str, ...]) -> None:
    said = computer.gpuops(*words, PATH="/nonexistent").failed(NoSshProgram)
    assert "apt install openssh-client" in said


def test_when_ssh_fails_the_cause_is_said_and_what_to_do(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.up()
    assert machine.ssh and machine.host_key
    other = host_keys.generate().public_line
    labels = [{"Key": "gpuops:host-key", "Value": other}]
    the_cloud.client().create_tags(Resources=[machine.id], Tags=labels)
    said = computer.gpuops("ssh", computer.name, "true").failed(HostKeyChanged)
    assert host_keys.fingerprint(other) in said
    assert host_keys.fingerprint(machine.host_key) in said
    with socket.create_server((machine.ssh.host, 0)) as probe:
        closed = str(probe.getsockname()[1])
    the_cloud.client().create_tags(Resources=[machine.id], Tags=[{"Key": "gpuops:ssh-port", "Value": closed}])
    said = computer.gpuops("ssh", computer.name, "true").failed(MachineUnreachable)
    assert f"({machine.ssh.host}:{closed}) can't be reached" in said
    assert "is not stopped by this: $" in said


def test_cp_brings_files_and_folders_there_and_back(computer: Computer, tmp_path: Path) -> None:
    computer.up()
    folder = tmp_path / "my photos"
    folder.mkdir()
    (folder / "näme with: colon.txt").write_bytes(b"x" * 100_000)
    (folder / "b").write_text("b")
    computer.gpuops("cp", str(folder), f"{computer.name}:").succeeded()
    computer.gpuops("cp", f"{folder}/b", str(folder / "näme with: colon.txt"), f"{computer.name}:").succeeded()
    back = tmp_path / "back"
    back.mkdir()
    computer.gpuops("cp", f"{computer.name}:my photos", f"{computer.name}:*.txt", str(back)).succeeded()
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*") if path.is_file()) == sorted(
        ["my photos/b", "my photos/näme with: colon.txt", "näme with: colon.txt"]
    )
    assert (back / "näme with: colon.txt").read_bytes() == b"x" * 100_000
    missing = computer.gpuops("cp", f"{computer.name}:nothing", str(back))
    assert missing.exit_code == 1
    assert "No such file or directory" in missing.stderr


@pytest.mark.parametrize(
    "words", [("a", "b"), ("m:a", "m:b"), ("m:a", "n:b", "."), ("a", "m:b", "."), ("a",), ("m:a",)]
)
def test_cp_wants_one_machine_on_one_side(computer: Computer, words: tuple[str, ...]) -> None:
    said = computer.gpuops_here("cp", *words).failed(BadInput)
    assert "Nothing was copied." in said
    assert "gpuops cp 'fast-ai:notebooks/*' ." in said


@pytest.fixture
def web_port() -> Iterator[int]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        server.RequestHandlerClass.log_message = lambda *_: None  # type: ignore[method-assign]
        serving = threading.Thread(target=server.serve_forever, args=(0.05,))
        serving.start()
        yield server.server_port
        server.shutdown()
        serving.join()


@contextlib.contextmanager
def tunnel(computer: Computer, *words: str) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`gpuops tunnel NAME WORDS`, open; and its first local port."""
    with computer.process("tunnel", computer.name, *words) as process:
        try:
            assert process.stdout and process.stderr
            line = process.stdout.readline()
            found = re.search(r"127\.0\.0\.1:(\d+) ", line)
            assert found, line + process.stderr.read()
            yield process, int(found[1])
        finally:
            process.kill()


def answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=10) as reply:
        return reply.status == 200
    return False


def test_a_tunnel_leads_to_the_machines_port_until_ctrl_c(computer: Computer, web_port: int) -> None:
    computer.up()
    # The sandbox's machines and this computer share 127.0.0.1, so the port itself is taken here.
    with tunnel(computer, str(web_port)) as (process, port):
        assert port != web_port
        assert answers(port)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"The tunnel is closed; {computer.name} runs on, at $" in said
    assert f"gpuops tunnel {computer.name} {web_port}" in said
    assert f"gpuops down {computer.name}" in said
    assert not answers(port)


def test_a_tunnel_finds_the_machine_again_after_a_restart_at_another_address(computer: Computer, web_port: int) -> None:
    before = computer.up()
    with tunnel(computer, str(web_port)) as (process, port):
        assert answers(port)
        computer.down()
        after = computer.up()
        assert before.ssh and after.ssh and before.ssh.host != after.ssh.host
        until(lambda: answers(port), "it leads there again")
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=30)
    assert f"The line to {computer.name} was lost; looking for it" in said
    assert f"{computer.name} is back" in said


def test_a_tunnel_to_a_machine_that_is_deleted_ends_and_says_so(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.up()
    with tunnel(computer, "6006") as (process, _):
        the_cloud.client().terminate_instances(InstanceIds=[machine.id])
        _, said = process.communicate(timeout=60)
    assert process.returncode == StateError.exit_code
    assert "Nothing runs and nothing bills." in said


def test_a_port_that_was_asked_for_and_is_taken_is_an_error(computer: Computer, web_port: int) -> None:
    computer.up()
    said = computer.gpuops("tunnel", computer.name, f"6006:{web_port}").failed(PortInUse)
    assert f"Port {web_port} is taken on this computer" in said


@pytest.mark.parametrize("word", ["0", "65536", "80:", ":80", "x", "80:90:100", "-1"])
def test_what_is_no_port_is_refused(computer: Computer, word: str) -> None:
    assert "Nothing was opened." in computer.gpuops_here("tunnel", "fast-ai", "--", word).failed(BadInput)


def test_a_tunnel_starts_no_machine(the_cloud: Cloud, computer: Computer) -> None:
    computer.has_machine(State.STOPPED)
    said = computer.gpuops("tunnel", computer.name, "6006").failed(StateError)
    assert f"Next: gpuops up {computer.name}" in said
    assert the_cloud.states(computer.name) == ["stopped"]
