"""`gpuops notebook` as a process of its own, with a real Jupyter behind it."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.computers import Computer

_URL = re.compile(r"http://127\.0\.0\.1:(\d+)/\S*\?token=(\w+)")


@dataclass
class Notebook:
    """`gpuops notebook`, running: its process, the URL that it printed, and what else it says."""

    process: subprocess.Popen[str]
    url: str
    log: Path

    @property
    def port(self) -> int:
        found = _URL.match(self.url)
        assert found
        return int(found[1])

    @property
    def token(self) -> str:
        return self.url.rpartition("=")[2]

    def api(self, path: str, body: object = None, method: str = "GET") -> Any:
        """What Jupyter's own API answers through the tunnel."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"token {self.token}"}
        address = f"http://127.0.0.1:{self.port}/api/{path}"
        request = urllib.request.Request(address, data=data, method=method, headers=headers)
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.loads(answer.read() or b"null")

    def answers(self) -> bool:
        with contextlib.suppress(OSError):
            return "version" in self.api("")
        return False

    def kernels(self) -> list[tuple[str, int]]:
        """Of each its state, and how many pages it has. While one starts, Jupyter may answer with an error."""
        with contextlib.suppress(OSError):
            return [(kernel["execution_state"], kernel["connections"]) for kernel in self.api("kernels")]
        return []

    def said(self, words: str) -> bool:
        return words in self.log.read_text()

    def interrupt(self) -> int:
        """Ctrl-C; its exit code."""
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(timeout=30)


@contextlib.contextmanager
def notebook(computer: Computer, *words: str, host: str = "") -> Iterator[Notebook]:
    """`gpuops notebook NAME WORDS`; with `host`, SIGUSR1 cuts its connections there."""
    environment = computer.environment()
    environment["PYTHONPATH"] = f"{_ROOT}:{environment['PYTHONPATH']}"
    argv = [sys.executable, "-m", "tests.cutting", host, "notebook", computer.name, *words]
    computer.folder.mkdir(exist_ok=True)
    log = computer.folder / "notebook.log"
    with (
        log.open("w") as stderr,
        subprocess.Popen(
            argv, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, text=True
        ) as process,
    ):
        try:
            assert process.stdout
            found = _URL.search(process.stdout.readline())
            assert found, log.read_text()
            yield Notebook(process, found[0], log)
        finally:
            process.kill()


_ROOT = Path(__file__).resolve().parents[1]
