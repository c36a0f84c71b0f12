"""The Jupyter server on a machine: found or started there, bound to 127.0.0.1, with a token. Over any transport.

Jupyter's own files say what runs. What they say comes from the machine, so nothing but a port and words that can stand
in a URL are taken from them.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

from gpuops.errors import RemoteCommandFailed, UnfitMachine
from gpuops.jobs import INTERPRETERS
from gpuops.render import render
from gpuops.transports import Transport

PORT = 8888
"""Jupyter's own, there and here: the one that is tried first."""

# On a disk that was made from a snapshot the first import of anything takes its time.
_STARTED_WITHIN_S = 120
_OWN = "gpuops/jupyter"
# fast.ai's image of 2017 has its environment where only a login finds it.
_PYTHONS = (f"{_OWN}/bin/python", "src/anaconda3/envs/fastai/bin/python", "anaconda3/bin/python", *INTERPRETERS)
_HAS_JUPYTER = (
    "import importlib.util as u, sys; sys.exit(all(u.find_spec(name) is None for name in ('notebook', 'jupyterlab')))"
)
_LOOPBACK = {"localhost", "127.0.0.1"}
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{8,256}")
_BASE_URL = re.compile(r"/([A-Za-z0-9._~-]+/)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class Notebook:
    """A server that listens on the machine's 127.0.0.1:`port`. `token` is "" where the person set a password."""

    port: int
    process_id: int
    base_url: str
    token: str = field(repr=False)

    def url(self, local_port: int) -> str:
        """Where a browser on this computer finds it. By number: localhost may be ::1, where nobody listens for us."""
        return f"http://127.0.0.1:{local_port}{self.base_url}" + (f"?token={self.token}" if self.token else "")


def find(line: Transport) -> Notebook | None:
    """The one that runs there, the newest of several; None where none does, or none that asks who is calling."""
    return next(iter(_read(_ask(line, "list"))), None)


def start(line: Transport, machine_name: str) -> Notebook:
    """Start one that outlives this line, unless ours runs. Raises `UnfitMachine`, `RemoteCommandFailed`."""
    started = _read(_ask(line, "start", _python(line, machine_name), str(PORT)))
    if not started:
        raise RemoteCommandFailed(
            f"Jupyter on {machine_name} started, and it is not one that only this computer can reach.",
            left_behind="It may be running there.",
            next_step=f"See what its settings say: gpuops ssh {machine_name} ls .jupyter; gpuops notebook --stop",
        )
    return started[0]


def stop(line: Transport, notebook: Notebook) -> None:
    """End it, with its kernels. Gone already is success."""
    _ask(line, "stop", str(notebook.process_id))


def _python(line: Transport, machine_name: str) -> str:
    for candidate in _PYTHONS:
        if line.run([candidate, "-c", _HAS_JUPYTER], check=False, timeout_s=60).exit_code == 0:
            return candidate
    raise UnfitMachine(
        f"{machine_name} has no Jupyter.",
        left_behind="Nothing was installed.",
        next_step=f"gpuops ssh {machine_name} 'python3 -m venv --system-site-packages {_OWN} && "
        f"{_OWN}/bin/pip install notebook'",
    )


def _ask(line: Transport, *words: str) -> str:
    script = render("notebook.sh.j2", within_s=_STARTED_WITHIN_S)
    result = line.run(["sh", "-c", script, "sh", *words], check=False)
    if result.exit_code != 0:
        # The person sees what was asked for, not the script that did it.
        raise RemoteCommandFailed(
            f"Jupyter could not be asked to {words[0]}.\n{result.tail}".rstrip(),
            next_step="What it said is on the machine, in gpuops/notebook/log.txt",
        )
    return result.stdout


def _read(answer: str) -> list[Notebook]:
    found = []
    for text in answer.split("\0"):
        try:
            noted = json.loads(text)
            port, process_id, base_url = int(noted["port"]), int(noted["pid"]), str(noted["base_url"])
            token, is_loopback = str(noted["token"]), noted["hostname"] in _LOOPBACK
            has_password, is_plain = bool(noted.get("password")), not noted.get("secure") and not noted.get("sock")
        except (ValueError, TypeError, LookupError):
            continue
        asks_who = _TOKEN.fullmatch(token) is not None if token else has_password
        if asks_who and is_loopback and is_plain and 1 <= port <= 65535 and _BASE_URL.fullmatch(base_url):
            found.append(Notebook(port=port, process_id=process_id, base_url=base_url, token=token))
    return found
