"""The cloud's process: `python -m gpuops.sandbox.cloud --dir FOLDER`. `gpuops.sandbox.start` runs it; people don't.

It serves until SIGTERM, then ends every machine and itself. Nothing of it survives but the folder: instances that were
running are gone with it.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from datetime import datetime, timezone
from pathlib import Path

import filelock

from gpuops.sandbox.folder import FORMAT, Folder, write_json
from gpuops.sandbox.hypervisor import Hypervisor


def main() -> int:
    options = _parse()
    folder = Folder(options.dir.resolve())
    alive = filelock.FileLock(folder.alive, timeout=0)
    try:
        alive.acquire()
    except filelock.Timeout:
        print(f"A cloud already runs in {folder.root}.", file=sys.stderr)
        return 1
    with alive:
        folder.announcement.unlink(missing_ok=True)  # left by a power cut; its process id may be anybody's by now
        hypervisor = Hypervisor(folder.machines, options.python)
        _serve(folder, hypervisor, boot_seconds=options.boot_seconds)
        hypervisor.close()
        folder.announcement.unlink(missing_ok=True)
    return 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpuops.sandbox.cloud", description="A cloud on this computer.")
    parser.add_argument("--dir", type=Path, required=True, help="the sandbox's folder")
    parser.add_argument("--boot-seconds", type=float, default=1.0, help="how long a machine is pending")
    parser.add_argument("--python", help="the interpreter that machines have as python3")
    return parser.parse_args()


def _serve(folder: Folder, hypervisor: Hypervisor, *, boot_seconds: float) -> None:
    """Answer until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())

    # moto takes 1.5 s to import: by now the folder is locked, and a signal is heard.
    from gpuops.sandbox import server

    http = server.make(hypervisor, boot_seconds=boot_seconds)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    announcement = {
        "format": FORMAT,
        "pid": os.getpid(),
        "url": f"http://127.0.0.1:{http.port}",
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder.announcement, announcement)
    ended.wait()


if __name__ == "__main__":
    sys.exit(main())
