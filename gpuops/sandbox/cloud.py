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
from typing import TYPE_CHECKING

# moto reads it when it's imported: its 1177 images take seconds to load in each region.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

import filelock
from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.test import Client

from gpuops.sandbox import ec2
from gpuops.sandbox.endpoint import Endpoint
from gpuops.sandbox.folder import FORMAT, Folder, write_json
from gpuops.sandbox.hypervisor import Hypervisor
from gpuops.sandbox.instances import Instances

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


def main(argv: list[str] | None = None) -> int:
    options = _parse(argv)
    folder = Folder(options.dir.resolve())
    try:
        alive = filelock.FileLock(folder.alive, thread_local=False)
        alive.acquire(timeout=0)
    except filelock.Timeout:
        print(f"A cloud already runs in {folder.root}.", file=sys.stderr)
        return 1
    with alive:
        lock = threading.RLock()
        hypervisor = Hypervisor(folder.machines, options.python)
        ec2.install(Instances(lock, hypervisor, boot_seconds=options.boot_seconds), hypervisor)
        moto = DomainDispatcherApplication(create_backend_app)
        _warm_up(moto)
        server = make_server("127.0.0.1", 0, Endpoint(moto, lock), threaded=True, request_handler=_RequestHandler)
        _serve(server, folder)
        hypervisor.shut_down_all()
        folder.announcement.unlink(missing_ok=True)
    return 0


def _parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m gpuops.sandbox.cloud", description="A cloud on this computer.")
    parser.add_argument("--dir", type=Path, required=True, help="the sandbox's folder")
    parser.add_argument("--boot-seconds", type=float, default=1.0, help="how long a machine is pending")
    parser.add_argument("--python", help="the interpreter that machines have as python3")
    return parser.parse_args(argv)


class _RequestHandler(MotoRequestHandler):
    # Head and body of an answer are two writes: without this, the second waits 40 ms for the client's delayed ACK.
    disable_nagle_algorithm = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not a line for each request; what went wrong still is logged."""


def _warm_up(moto: WSGIApplication) -> None:
    """Make moto import and load now what it otherwise would with the first request, which would take 0.3 s."""
    for service, action in (("ec2", "DescribeRegions"), ("sts", "GetCallerIdentity")):
        Client(moto).post(
            data={"Action": action},
            headers={"Authorization": f"AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/{service}/aws4_request"},
        )


def _serve(server: BaseWSGIServer, folder: Folder) -> None:
    """Answer until SIGTERM."""
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    threading.Thread(target=server.serve_forever, daemon=True).start()
    announcement = {
        "format": FORMAT,
        "pid": os.getpid(),
        "url": f"http://127.0.0.1:{server.port}",
        "started_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(folder.announcement, announcement)
    ended.wait()


if __name__ == "__main__":
    sys.exit(main())
