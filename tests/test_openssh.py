"""OpenSSH's own programs: what they make of a config, by their own account, and one of them in a person's terminal."""

from __future__ import annotations

import os
import pwd
import re
import select
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from gpuops import openssh
from gpuops.errors import NoSshProgram, SshConfigError
from gpuops.openssh import Access
from tests.transports import servers

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")

ACCOUNT = pwd.getpwuid(os.getuid())
HOME = Path(ACCOUNT.pw_dir)

# What an OpenSSH program is run by, with the command line's handler of SIGTERM.
_RUNNER = """
import signal, sys
from gpuops import openssh
signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
print(f"code={openssh.run(sys.argv[1:])}", flush=True)
"""

_SHELL_IN_A_TERMINAL = """
import fcntl, os, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execvp("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"])
"""


# What it makes of a config


@pytest.fixture
def config(tmp_path: Path) -> Callable[[str], Path]:
    """Writes one."""

    def write(text: str) -> Path:
        path = tmp_path / "config"
        path.write_bytes(os.fsencode(text))
        return path

    return write


@needs_ssh
def test_access_is_as_the_block_says(config: Callable[[str], Path], tmp_path: Path) -> None:
    key = tmp_path / "my key"
    key.touch()
    path = config(
        f'Host box\n  HostName 127.0.0.1\n  IdentityFile "{key}"\n  IdentityAgent "{tmp_path}/an agent"\n'
        "  ProxyCommand connect %h %p\nHost other\n  IdentityFile none\n"
    )
    proxy = (os.environ.get("SHELL") or "/bin/sh", "-c", "exec connect 127.0.0.1 22")
    assert openssh.access(path, "box") == Access(
        config=path, identity_files=(key,), agent=f"{tmp_path}/an agent", proxy=proxy
    )
    assert openssh.access(path, "box").words == ["-F", str(path)]


@needs_ssh
def test_keys_are_the_files_that_openssh_itself_tries(
    config: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what `ssh -v` says. It reads ~ and %d from the account, whatever $HOME is."""
    monkeypatch.setenv("KEYS", str(tmp_path))
    folder = os.path.relpath(tmp_path, HOME)
    host, user = socket.gethostname(), ACCOUNT.pw_name
    with _listening() as port:
        named = {
            f'"{tmp_path}/with a space"': "with a space",
            f"{tmp_path}/100%%": "100%",
            f"{tmp_path}/%u-%r-%n-%h-%p-%i": f"{user}-me-box-127.0.0.1-{port}-{os.getuid()}",
            f"{tmp_path}/%l-%L-%k": f"{host}-{host.split('.')[0]}-alias",
            "${KEYS}/variable": "variable",
            f'"{tmp_path}/quote\'d"': "quote'd",
            f"{tmp_path}/büro": "büro",
            f"{tmp_path}/b\udcfcro": "b\udcfcro",
            f"{tmp_path}/two\u2028lines": "two\u2028lines",
        }
        if HOME.is_dir():
            named |= {f"~/{folder}/tilde": "tilde", f"%d/{folder}/home": "home", f"~{user}/{folder}/user": "user"}
        for name in named.values():
            (tmp_path / name).touch()
        lines = "".join(f"  IdentityFile {said}\n" for said in named)
        where = f"  HostName 127.0.0.1\n  Port {port}\n  User me\n  HostKeyAlias alias\n  IdentityAgent none\n"
        path = config(f"Host box\n{where}{lines}")
        tried = _keys_tried(path)
    files = openssh.access(path, "box").identity_files
    assert [os.fsencode(file) for file in files] == tried
    assert [file.resolve() for file in files] == [tmp_path.resolve() / name for name in named.values()]


@needs_ssh
def test_keys_that_are_not_here_are_left_out(
    config: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("none", "in-an-agent.pub"):
        (tmp_path / name).touch()
    nowhere = ("missing", "~nobody-of-that-name/key", "${NO_SUCH_VARIABLE}/key", f"{tmp_path}/%Z", f"{tmp_path}/%")
    lines = "".join(f"  IdentityFile {said}\n" for said in (*nowhere, f"{tmp_path}/in-an-agent"))
    path = config(f"Host box\n{lines}Host other\n  IdentityFile none\n")
    assert openssh.access(path, "box").identity_files == (tmp_path / "in-an-agent",)
    assert openssh.access(path, "other").identity_files == ()


@needs_ssh
@pytest.mark.parametrize(
    ("said", "agent"),
    [
        ("", "/from/SSH_AUTH_SOCK"),
        ("IdentityAgent SSH_AUTH_SOCK", "/from/SSH_AUTH_SOCK"),
        ("IdentityAgent none", ""),
        ("IdentityAgent $OTHER", "/from/OTHER"),
        ("IdentityAgent ${OTHER}/deeper", "/from/OTHER/deeper"),
        ("IdentityAgent $UNKNOWN", ""),
        ("IdentityAgent /a/socket", "/a/socket"),
        ('IdentityAgent "/a/socket of mine"', "/a/socket of mine"),
        ("IdentityAgent ~/socket", f"{HOME}/socket"),
        ("IdentityAgent %d/100%%/%r@%h", f"{HOME}/100%/me@127.0.0.1"),
        ("IdentityAgent socket", "socket"),
    ],
)
def test_the_agent_is_the_one_that_openssh_itself_would_ask(
    config: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch, said: str, agent: str
) -> None:
    monkeypatch.setenv("SSH_AUTH_SOCK", "/from/SSH_AUTH_SOCK")
    monkeypatch.setenv("OTHER", "/from/OTHER")
    monkeypatch.setenv("HOME", "/not/of/the/account")
    path = config(f"Host box\n  HostName 127.0.0.1\n  User me\n  IdentityFile none\n  {said}\n")
    assert openssh.access(path, "box").agent == agent


@needs_ssh
@pytest.mark.parametrize("said", ["", "ProxyJump none", "ProxyCommand none"])
def test_without_a_proxy_the_way_is_a_direct_one(config: Callable[[str], Path], said: str) -> None:
    path = config(f"Host box\n  IdentityFile none\n  {said}\n")
    assert openssh.access(path, "box").proxy == ()


@needs_ssh
@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("Host box\n  Colour blue\n", "line 2: Bad configuration option: colour"),
        ("Host box\n  Port many\n", "line 2: Bad port 'many'"),
        ("Host box\n  HostName\n", "line 2: "),
    ],
)
def test_a_config_that_openssh_refuses_is_told_in_its_words(
    config: Callable[[str], Path], text: str, says: str
) -> None:
    path = config(text)
    for ask in (openssh.access, openssh.resolved):
        with pytest.raises(SshConfigError) as caught:
            ask(path, "box")
        assert caught.value.what.startswith(f"OpenSSH refuses {path}: ")
        assert says in caught.value.what
        assert f"ssh -G -F {path} box" in caught.value.next_step


@needs_ssh
def test_a_host_that_looks_like_an_option_is_a_host(config: Callable[[str], Path]) -> None:
    with pytest.raises(SshConfigError, match="hostname contains invalid characters"):
        openssh.resolved(config(""), "-oProxyCommand=true")


def test_without_an_ssh_program_the_config_says_nothing_and_keys_are_still_in_the_agent(
    config: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("SSH_AUTH_SOCK", "/an/agent")
    path = config("Host box\n  Colour blue\n  ProxyJump bastion\n")
    assert openssh.resolved(path, "box") == {}
    assert openssh.access(path, "box") == Access(config=path, agent="/an/agent")


@needs_ssh
@pytest.mark.skipif(os.getuid() != 0, reason="only root can become nobody whom the system knows")
def test_an_account_that_the_system_does_not_know_has_no_ssh_program(config: Callable[[str], Path]) -> None:
    """As in a container that runs as any user id: OpenSSH's programs refuse to do anything there."""
    path = config("Host box\n  ProxyJump bastion\n")
    script = (
        "import os, sys; from pathlib import Path; from gpuops import openssh;"
        "os.setresuid(*[54321] * 3); print(openssh.is_there(), openssh.access(Path(sys.argv[1]), 'box').proxy)"
    )
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("False ()\n", "")


def test_only_another_config_than_the_accounts_own_has_to_be_named(tmp_path: Path) -> None:
    """With -F ssh would leave out what the computer's /etc/ssh/ssh_config says."""
    own = HOME / ".ssh" / "config"
    assert openssh.config_words(own) == []
    assert Access(config=own).words == []
    assert openssh.config_words(tmp_path / "config") == ["-F", str(tmp_path / "config")]
    assert Access().words == []


# A program run for a person


@pytest.mark.parametrize("code", [0, 3, 255])
def test_a_program_s_exit_code_is_given_back(code: int) -> None:
    assert openssh.run(["sh", "-c", f"exit {code}"]) == code


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL, signal.SIGSEGV])
def test_a_program_that_a_signal_ended_gives_128_and_its_number(number: signal.Signals) -> None:
    assert openssh.run(["sh", "-c", f"ulimit -c 0; kill -{number.value} $$"]) == 128 + number


def test_signals_are_handled_afterwards_as_they_were_before() -> None:
    numbers = (signal.SIGINT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    openssh.run(["true"])
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_program_that_is_missing_is_told_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoSshProgram, match="no `scp` program") as caught:
        openssh.run(["scp", "a", "b:"])
    assert "openssh-client" in caught.value.next_step


@pytest.fixture
def runner(tmp_path: Path) -> list[str]:
    path = tmp_path / "runner.py"
    path.write_text(_RUNNER)
    return [sys.executable, str(path)]


@pytest.fixture
def script(tmp_path: Path) -> Callable[[str], str]:
    """Writes a program; what it says is not in the command line, which a terminal shows too."""

    def write(text: str) -> str:
        path = tmp_path / "program"
        path.write_text(text)
        return str(path)

    return write


@pytest.mark.parametrize("is_stopped", [False, True], ids=["at work", "stopped"])
def test_sigterm_ends_the_program_too(
    runner: list[str], script: Callable[[str], str], tmp_path: Path, is_stopped: bool
) -> None:
    pid_file = tmp_path / "pid"
    program = script(f"echo $$ >{pid_file}.new; mv {pid_file}.new {pid_file}; while :; do sleep 0.05; done\n")
    with subprocess.Popen([*runner, "sh", program], stdout=subprocess.PIPE) as ours:
        servers.until(lambda: pid_file.exists() and _state(ours.pid) == "S", "the program runs, and ours waits for it")
        pid = int(pid_file.read_text())
        if is_stopped:
            os.kill(pid, signal.SIGSTOP)  # SIGTSTP stops nothing in a process group that no shell waits for
            servers.until(lambda: _state(ours.pid) == _state(pid) == "T", "both are stopped")
        ours.terminate()
        ours.send_signal(signal.SIGCONT)
    assert ours.returncode == 128 + signal.SIGTERM
    assert servers.gone(pid)


class Terminal:
    """A person's shell with job control, in a terminal of its own; a context manager."""

    def __init__(self) -> None:
        self._shown = ""
        self._screen, theirs = os.openpty()
        argv = [sys.executable, "-c", _SHELL_IN_A_TERMINAL]
        environment = {**os.environ, "PS1": "$ ", "TERM": "dumb", "HISTFILE": ""}
        self._shell = subprocess.Popen(
            argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        )
        os.close(theirs)
        self.shows(r"\$ ")

    def __enter__(self) -> Terminal:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._screen)  # as when its window is closed
        self._shell.kill()
        self._shell.wait()

    def type(self, text: str) -> None:
        os.write(self._screen, text.encode())

    def shows(self, pattern: str) -> str:
        """Wait until it shows this after what it was waited for before."""
        deadline = time.monotonic() + 10
        while not (found := re.search(pattern, self._shown)):
            ready, _, _ = select.select([self._screen], [], [], max(deadline - time.monotonic(), 0))
            assert ready, f"not shown: {pattern!r}; but: {self._shown!r}"
            self._shown += os.read(self._screen, 65536).decode(errors="replace")
        self._shown = self._shown[found.end() :]
        return found[0]


needs_bash = pytest.mark.skipif(not shutil.which("bash"), reason="there is no shell with job control here")
CTRL_C, CTRL_D, CTRL_Z = "\x03", "\x04", "\x1a"


@needs_bash
def test_ctrl_c_is_for_the_program_and_its_code_is_told_afterwards(
    runner: list[str], script: Callable[[str], str]
) -> None:
    program = script("trap 'exit 42' INT; echo ready; while :; do sleep 0.05; done\n")
    with Terminal() as terminal:
        terminal.type(f"{' '.join(runner)} sh {program}\n")
        terminal.shows("ready")
        terminal.type(CTRL_C)
        terminal.shows("code=42")


@needs_bash
def test_ctrl_c_that_the_program_does_not_mind_is_not_minded(runner: list[str], script: Callable[[str], str]) -> None:
    program = script("trap 'echo no' INT; echo ready; until [ $word ]; do read -r word; done; echo got $word; exit 7\n")
    with Terminal() as terminal:
        terminal.type(f"{' '.join(runner)} bash {program}\n")
        terminal.shows("ready")
        for _ in range(3):
            terminal.type(CTRL_C)
            terminal.shows("no\r\n")
        terminal.type("word\n")
        terminal.shows("got word")
        terminal.shows("code=7")


@needs_bash
def test_ctrl_z_stops_both_and_one_fg_goes_on_with_both(runner: list[str], script: Callable[[str], str]) -> None:
    program = script("echo ready; while read -r word; do echo got $word; done; exit 7\n")
    with Terminal() as terminal:
        terminal.type(f"{' '.join(runner)} sh {program}\n")
        terminal.shows("ready")
        for number in range(20):
            terminal.type(CTRL_Z)
            terminal.shows("Stopped")
            terminal.type("fg\n")
            terminal.shows(r"runner\.py[^\n]*\n")
            terminal.type(f"word{number}\n")
            terminal.shows(f"got word{number}\r")
        terminal.type(CTRL_D)
        terminal.shows("code=7")


@needs_bash
def test_in_the_background_both_wait_until_they_are_brought_back(
    runner: list[str], script: Callable[[str], str]
) -> None:
    program = script("echo ready; while read -r word; do echo got $word; done; exit 7\n")
    with Terminal() as terminal:
        terminal.type(f"{' '.join(runner)} sh {program} &\n")
        terminal.shows("ready")
        state = ""
        while state != "Stopped":
            terminal.type("jobs\n")
            state = terminal.shows("Running|Stopped")
        terminal.type("fg\n")
        terminal.shows(r"runner\.py[^\n]*\n")
        terminal.type("word\n")
        terminal.shows("got word\r")
        terminal.type(CTRL_D)
        terminal.shows("code=7")


@needs_bash
def test_a_program_that_stops_itself_alone_stops_both(runner: list[str], script: Callable[[str], str]) -> None:
    program = script("while echo ready && read -r word; do kill -TSTP $$; done; exit 7\n")
    with Terminal() as terminal:
        terminal.type(f"{' '.join(runner)} sh {program}\n")
        for _ in range(5):
            terminal.shows("ready")
            terminal.type("stop\n")
            terminal.shows("Stopped")
            terminal.type("fg\n")
        terminal.shows("ready")
        terminal.type(CTRL_D)
        terminal.shows("code=7")


@needs_bash
@needs_ssh
@pytest.mark.skipif(bool(servers.why_not("openssh")), reason="OpenSSH's server can't run here")
def test_ssh_is_stopped_and_left_by_its_own_escapes(runner: list[str], tmp_path: Path) -> None:
    with servers.serving("openssh", tmp_path / "server") as server, Terminal() as terminal:
        there, known_hosts, config = server.address, tmp_path / "known_hosts", tmp_path / "config"
        known_hosts.write_text(f"box {server.public_keys['ssh-ed25519']}\n")
        config.write_text(
            f"Host box\n  HostName {there.host}\n  Port {there.port}\n  User {there.user}\n  HostKeyAlias box\n"
            f"  IdentityFile {server.client_key}\n  IdentitiesOnly yes\n  UserKnownHostsFile {known_hosts}\n"
        )
        (server.home / "program").write_text("echo ready; while read -r word; do echo got $word; done; exit 7\n")
        terminal.type(f"{' '.join(runner)} ssh -F {config} -tt box sh program\n")
        terminal.shows("ready")
        for number in range(3):
            terminal.type("\r~" + CTRL_Z)
            terminal.shows("Stopped")
            terminal.type("fg\n")
            terminal.shows(r"runner\.py[^\n]*\n")
            terminal.type(f"word{number}\r")
            terminal.shows(f"got word{number}\r")
        terminal.type("\r~.")
        terminal.shows("code=255")


def _keys_tried(config: Path) -> list[bytes]:
    """The private keys that ssh says it would try for `box`, as soon as somebody has answered."""
    argv = ["ssh", "-v", "-F", str(config), "box", "true"]
    said = subprocess.run(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE).stderr
    tried = re.findall(rb"^debug1: identity file (.*) type -?\d+\r?$", said, re.M)
    # It shows what is not ASCII as three octal digits.
    return [path.decode("unicode_escape").encode("latin-1") for path in tried if not path.endswith(b"-cert")]


class _listening:
    """A port where somebody answers each call, and hangs up."""

    def __enter__(self) -> int:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._answering = threading.Thread(target=self._answer)
        self._answering.start()
        port: int = self._listener.getsockname()[1]
        return port

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._answering.join()
        self._listener.close()

    def _answer(self) -> None:
        try:
            while True:
                self._listener.accept()[0].close()
        except OSError:
            pass


def _state(pid: int) -> str:
    return subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True).stdout.strip()[:1]
