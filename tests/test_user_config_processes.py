"""Several programs at one ssh config at once, and kill -9: it is whole at every moment, and never locked for good."""

from __future__ import annotations

import contextlib
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpuops.ssh_config import AddressBook
from tests.ssh_configs import ELSEWHERE, HERE, PLAIN, machine_at

_COMMAND = """
import sys
from pathlib import Path
from gpuops.machine import Address
from gpuops.ssh_config import AddressBook
from tests.ssh_configs import machine

folder, name, times = sys.argv[1:]
book = AddressBook(user_config=Path(folder, "config"), keys=Path(folder, "keys"), wait_s=60)
print("ready", flush=True)
sys.stdin.readline()
for number in range(int(times)):
    mine = machine(name=name, id=f"i-{name}", ssh=Address(host=f"10.1.2.{number}", user="ubuntu"))
    book.update([mine])
    book.bring_in(mine)
"""

# For each line "HOST COUNT" a command of its own, which ends by kill -9 at its COUNTth act on files and programs.
_COMMANDS_KILLED = """
import os, signal, sys
from pathlib import Path
from gpuops.ssh_config import AddressBook
from tests.ssh_configs import machine_at

def bring_in(host, folder):
    book = AddressBook(user_config=Path(folder, "config"), keys=Path(folder, "keys"))
    book.update([machine_at(host)])
    book.bring_in(machine_at(host))

def die_at(count):
    def hook(event, arguments):
        nonlocal count
        if event == "open" or event.startswith(("os.", "fcntl.", "subprocess.")):
            count -= 1
            if count == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(hook)

bring_in("192.0.2.1", Path(sys.argv[1], "warming up"))
print("ready", flush=True)
for line in sys.stdin:
    host, count = line.split()
    if not (pid := os.fork()):
        die_at(int(count))
        bring_in(host, sys.argv[1])
        os._exit(0)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""
_NEVER = 1_000_000


def running(program: str, *words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, words)],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


@contextlib.contextmanager
def at_work(folder: Path, names: tuple[str, ...], *, times: int) -> Iterator[list[subprocess.Popen[str]]]:
    """A command for each of these machines, all let go at the same time; each is at 10.1.2.0, 10.1.2.1 and so on."""
    with contextlib.ExitStack() as stack:
        commands = [stack.enter_context(running(_COMMAND, folder, name, times)) for name in names]
        for command in commands:
            assert command.stdout and command.stdout.readline() == "ready\n"
        for command in commands:
            assert command.stdin
            command.stdin.write("go\n")
            command.stdin.flush()
        try:
            yield commands
        finally:
            for command in commands:
                command.kill()


def included(config: Path) -> bytes:
    return f'Include "{config.with_name("gpuops.config")}"\n'.encode()


def test_two_commands_at_once_lose_nothing_of_each_others(tmp_path: Path) -> None:
    """What one reads under the lock is still so when it writes."""
    config = tmp_path / "config"
    theirs = PLAIN + b"Host one\n HostName 52.1.2.3\nHost two\n\tHostName 52.1.2.4 # stale\n"
    config.write_bytes(theirs)
    with at_work(tmp_path, ("one", "two"), times=40) as commands:
        assert [command.wait(timeout=60) for command in commands] == [0, 0]
    assert config.read_bytes() == included(config) + re.sub(rb"52\.1\.2\.\d", b"10.1.2.39", theirs)
    kept = {"config", "gpuops.config", "keys", ".config.before-gpuops"}
    assert {path.name for path in tmp_path.iterdir()} == kept


def test_with_an_editor_that_knows_no_lock_the_config_is_whole_at_every_moment(tmp_path: Path) -> None:
    """What it saves is kept, and changed as we want it by the next command at the latest.

    Not kept is what it saves between our last look at the file and the renaming, a matter of microseconds; nor is what
    we write between its reading and its saving: then the next command writes it again.
    """
    config = tmp_path / "config"
    theirs = b"# saved %d\n" + PLAIN + b"Host fast-ai\n HostName %b # mine\n"
    whole = re.compile(
        b"(%b)?" % re.escape(included(config))
        + re.escape(theirs).replace(b"%d", rb"\d+").replace(b"%b", rb"(52\.1\.2\.3|10\.1\.2\.\d+)")
    )
    config.write_bytes(theirs % (0, b"52.1.2.3"))
    saves, started = 0, time.monotonic()
    with at_work(tmp_path, ("fast-ai", "fast-ai"), times=20) as commands:
        while any(command.poll() is None for command in commands):
            text = config.read_bytes()
            assert whole.fullmatch(text), text
            if saves * 0.02 < time.monotonic() - started:
                saves += 1
                saved = tmp_path / "saved"
                saved.write_bytes(re.sub(rb"# saved \d+", b"# saved %d" % saves, text))
                saved.rename(config)
        assert [command.wait(timeout=60) for command in commands] == [0, 0]
    assert saves > 10
    assert whole.fullmatch(config.read_bytes())
    config.write_bytes(theirs % (saves + 1, b"52.1.2.3"))
    book = AddressBook(user_config=config, keys=tmp_path / "keys")
    book.bring_in(machine_at(HERE))
    assert config.read_bytes() == included(config) + theirs % (saves + 1, HERE.encode())


@contextlib.contextmanager
def killed(folder: Path) -> Iterator[Callable[..., bool]]:
    """A function that has a command bring the machine in and killed; False where it came to its end before."""
    with running(_COMMANDS_KILLED, folder) as commands:
        stdin, stdout = commands.stdin, commands.stdout
        assert stdin and stdout and stdout.readline() == "ready\n"

        def bring_in(host: str, *, at_act: int = _NEVER, after_s: float | None = None) -> bool:
            stdin.write(f"{host} {at_act}\n")
            stdin.flush()
            pid = int(stdout.readline())
            if after_s is not None:
                time.sleep(after_s)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            return int(stdout.readline()) == -signal.SIGKILL

        try:
            yield bring_in
        finally:
            commands.kill()


def _check(config: Path, theirs: bytes, hosts: tuple[str, str], folder: Path) -> bytes:
    """The config is one or the other, with its mode and owner; and the next command writes it. Gives what it was."""
    found, status = config.read_bytes(), config.stat()
    assert found in {included(config) + theirs % host.encode() for host in hosts} | {theirs % b"52.1.2.3"}
    assert status.st_mode & 0o777 == 0o640
    assert os.getuid() != 0 or (status.st_uid, status.st_gid) == (4321, 1234)
    book = AddressBook(user_config=config, keys=folder / "keys", wait_s=1)
    book.update([machine_at(hosts[0])])
    book.bring_in(machine_at(hosts[0]))
    assert config.read_bytes() == included(config) + theirs % hosts[0].encode()
    return found


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config"
    path.write_bytes(_THEIRS % b"52.1.2.3")
    path.chmod(0o640)
    if os.getuid() == 0:
        os.chown(path, 4321, 1234)
    return path


_THEIRS = PLAIN + b"Host fast-ai\n\tHostName %b # mine"


def test_after_kill_9_at_any_act_the_config_is_the_old_or_the_new_and_the_next_command_works(
    config: Path, tmp_path: Path
) -> None:
    """Law 5. All that it does with files and programs is gone through, one after the other."""
    found = []
    with killed(tmp_path) as bring_in:
        act = 1
        while bring_in(ELSEWHERE, at_act=act):
            found.append(_check(config, _THEIRS, (HERE, ELSEWHERE), tmp_path))
            act += 1
    assert act > 20
    new = included(config) + _THEIRS % ELSEWHERE.encode()
    # It is the old one up to the renaming, and the new one from then on.
    changed = [text == new for text in found]
    assert changed == sorted(changed)
    assert True in changed


def test_after_kill_9_from_outside_at_any_time_too(config: Path, tmp_path: Path) -> None:
    chance, kills = random.Random(0), 0
    with killed(tmp_path) as bring_in:
        started = time.monotonic()
        assert not bring_in(HERE)
        whole_s = time.monotonic() - started
        for _ in range(50):
            kills += bring_in(ELSEWHERE, after_s=chance.uniform(0, whole_s))
            _check(config, _THEIRS, (HERE, ELSEWHERE), tmp_path)
    assert kills > 10
