"""OpenSSH's own programs on this computer: what they make of a config, and one of them run for a person."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import shlex
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from gpuops.errors import NoSshProgram, SshConfigError

FAILED = 255
"""What ssh and scp exit with when the connection failed; and what a command there may exit with too."""

UNATTENDED = (
    *("-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "-o", "ControlMaster=no"),
    *("-o", "RequestTTY=no", "-o", "RemoteCommand=none"),
)
"""Options for a connection that programs use: no questions, and none of what a config adds for the person's own.

One that is there to be shared (ControlPath) is; it may be the only way through a second factor.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How this computer gets to a machine, beside its address: what the person's ssh config says, where it is asked.

    `config` is what OpenSSH's programs are to read (None: their own). `identity_files` are tried in order; what is in
    the agent, a socket, needs no passphrase. `proxy` is a program's argv whose standard input and output are the
    connection; empty for a direct one.
    """

    config: Path | None = None
    identity_files: tuple[Path, ...] = ()
    agent: str = ""
    proxy: tuple[str, ...] = ()

    @property
    def words(self) -> list[str]:
        """The options by which ssh and scp read that config."""
        return config_words(self.config) if self.config else []


def is_there(program: str = "ssh") -> bool:
    """Whether it can be run. For an account that the system doesn't know, OpenSSH's programs do nothing."""
    return _account() is not None and shutil.which(program) is not None


def config_words(config: Path) -> list[str]:
    """None for the account's own, as with -F ssh would leave out the computer's /etc/ssh/ssh_config."""
    return [] if config == Path(_home(), ".ssh", "config") else ["-F", str(config)]


def resolved(config: Path, host: str, *, within_s: float = 10.0) -> dict[str, tuple[str, ...]]:
    """What OpenSSH makes of the config for this host: each keyword in lower case, with its values.

    Empty where there is no ssh program. Raises `SshConfigError` where it refuses the file, in its own words, and where
    it has not read it by then.
    """
    if not is_there():
        return {}
    try:
        done = _ended(["ssh", "-G", *config_words(config), "--", host], within_s)
    except subprocess.TimeoutExpired as error:
        raise SshConfigError(
            f"OpenSSH took over {within_s:g} s to read {config}.",
            next_step=f"See what it waits for (a Match exec?): ssh -vvG -F {config} {host}",
        ) from error
    if done.returncode != 0:
        said = os.fsdecode(done.stderr).strip().splitlines() or [f"it exited with {done.returncode}"]
        reason = next((line for line in said if " line " in line), said[0])
        raise SshConfigError(
            f"OpenSSH refuses {config}: {reason}",
            next_step=f"Mend that line, and see: ssh -G -F {config} {host}",
        )
    values: dict[str, tuple[str, ...]] = {}
    for line in os.fsdecode(done.stdout).split("\n"):
        keyword, _, value = line.partition(" ")
        values[keyword] = (*values.get(keyword, ()), value)
    return values


def access(config: Path, host: str) -> Access:
    """How the config says that this host is reached. Raises `SshConfigError`."""
    values = resolved(config, host)
    tokens = _tokens(values, host)
    return Access(
        config=config,
        identity_files=tuple(_identity_files(values, tokens)),
        agent=_agent(values, tokens),
        proxy=_proxy(config_words(config), values, tokens),
    )


def require(program: str) -> None:
    """Raises `NoSshProgram` where this computer lacks it."""
    if not is_there(program):
        raise NoSshProgram(
            f"There is no `{program}` program on this computer.",
            left_behind="Nothing was changed.",
            next_step="Install OpenSSH's client (Debian and Ubuntu: apt install openssh-client).",
        )


def run(argv: Sequence[str]) -> int:
    """One of the programs, in the person's terminal, until it ends; its exit code, 128 + n where a signal ended it.

    Raises `NoSshProgram`.
    """
    require(argv[0])
    with _leaving_the_keyboard_to_it(), subprocess.Popen(argv) as program:
        try:
            program.returncode = os.waitstatus_to_exitcode(_status_at_its_end(program.pid))
        except BaseException:
            program.terminate()
            program.send_signal(signal.SIGCONT)  # one that stands still doesn't hear the other
            raise
    return program.returncode if program.returncode >= 0 else 128 - program.returncode


def _ended(argv: Sequence[str], within_s: float) -> subprocess.CompletedProcess[bytes]:
    """With what it said. Raises `TimeoutExpired`, when all that it has started (Match exec) is ended with it."""
    with subprocess.Popen(
        argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    ) as program:
        try:
            stdout, stderr = program.communicate(timeout=within_s)
        except BaseException:
            os.killpg(program.pid, signal.SIGKILL)
            raise
    return subprocess.CompletedProcess(argv, program.returncode, stdout, stderr)


@contextlib.contextmanager
def _leaving_the_keyboard_to_it() -> Iterator[None]:
    """Ctrl-C and Ctrl-Z reach the whole job, and it is the program that decides what to do about them."""
    numbers = (signal.SIGINT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
    # A handler isn't inherited. That a signal is ignored would be, and where it is, the program is to know.
    handled = [number for number in numbers if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, lambda *_: None) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _status_at_its_end(pid: int) -> int:
    """While the program stands still (Ctrl-Z, or ssh's own ~^Z), so do we: the shell has to see that its job does."""
    at_once = 0
    while True:
        seen, status = os.waitpid(pid, os.WUNTRACED | os.WCONTINUED | at_once)
        at_once = 0
        if not seen:  # whoever has woken us alone meant both
            os.kill(pid, signal.SIGCONT)
        elif os.WIFSTOPPED(status):
            os.kill(os.getpid(), signal.SIGSTOP)
            at_once = os.WNOHANG
        elif not os.WIFCONTINUED(status):
            return status


def _tokens(values: dict[str, tuple[str, ...]], host: str) -> dict[str, str]:
    """Those of ssh_config(5) that a file's name may have, but for %C and %j."""
    name, account = socket.gethostname(), _account()
    return {
        "d": _home(),
        "h": _first(values, "hostname"),
        "i": str(os.getuid()),
        "k": _first(values, "hostkeyalias") or host,
        "L": name.split(".")[0],
        "l": name,
        "n": host,
        "p": _first(values, "port"),
        "r": _first(values, "user"),
        "u": account.pw_name if account else "",
    }


def _identity_files(values: dict[str, tuple[str, ...]], tokens: dict[str, str]) -> Iterator[Path]:
    for value in values.get("identityfile", ()):
        path = Path(_path(value, tokens))
        if value != "none" and (path.exists() or path.with_name(f"{path.name}.pub").exists()):
            yield path


def _agent(values: dict[str, tuple[str, ...]], tokens: dict[str, str]) -> str:
    """Its socket: the one named, or the one that a variable names."""
    said = _first(values, "identityagent") or "$SSH_AUTH_SOCK"
    if said == "none":
        return ""
    if said == "SSH_AUTH_SOCK" or re.fullmatch(r"\$\w+", said):
        return os.environ.get(said.removeprefix("$"), "")
    return _path(said, tokens)


def _proxy(words: list[str], values: dict[str, tuple[str, ...]], tokens: dict[str, str]) -> tuple[str, ...]:
    if jumps := _first(values, "proxyjump"):
        # Not -J, by which none but the last of several jumps would hear of these options.
        argv: list[str] = []
        for jump in jumps.split(","):
            through = ("-o", f"ProxyCommand={_literally(shlex.join(argv))}") if argv else ()
            host = jump if jump.startswith("ssh://") else f"ssh://{jump}"
            argv = ["ssh", *map(_literally, words), *UNATTENDED, *through, "-W", "[%h]:%p", "--", host]
        return tuple(_expanded(word, tokens) for word in argv)
    if command := _first(values, "proxycommand"):
        return (os.environ.get("SHELL") or "/bin/sh", "-c", f"exec {_expanded(command, tokens)}")
    return ()


def _path(value: str, tokens: dict[str, str]) -> str:
    """As OpenSSH reads a file's name: ~ is the account's home folder, whatever $HOME is."""
    if value == "~" or value.startswith("~/"):
        value = f"{_literally(_home())}{value[1:]}"
    path = os.path.expanduser(_expanded(value, tokens))  # noqa: PTH111  # Path's own fails for a user who isn't known
    return re.sub(r"\$\{(\w+)\}", lambda found: os.environ.get(found[1], found[0]), path)


def _literally(text: str) -> str:
    return text.replace("%", "%%")


def _expanded(text: str, tokens: dict[str, str]) -> str:
    """With ssh_config(5)'s tokens replaced; one that isn't known here stays, and whoever reads it complains."""
    return re.sub(r"%(.)", lambda found: {"%": "%", **tokens}.get(found[1], found[0]), text)


def _first(values: dict[str, tuple[str, ...]], keyword: str) -> str:
    value = values.get(keyword, ("",))[0]
    return "" if value == "none" and keyword.startswith("proxy") else value


def _home() -> str:
    account = _account()
    return account.pw_dir if account else str(Path.home())


def _account() -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(os.getuid())
    except KeyError:
        return None
