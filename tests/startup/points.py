"""Stops this process before and after every call of AWS's API and every fsync, until whoever traces it says "go on".

`tests/kill_points.py` starts processes with this loaded, and kills them at a point from outside.
"""

from __future__ import annotations

import functools
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

_lock = threading.Lock()  # regions are asked in threads: one point at a time


def install() -> None:
    out, back = map(int, os.environ.pop("GPUOPS_TEST_POINTS").split(","))

    def stop(label: str) -> None:
        with _lock:
            os.write(out, f"{label}\n".encode())
            os.read(back, 1)

    def around(function: Callable[..., Any], name: Callable[..., str]) -> Callable[..., Any]:
        @functools.wraps(function)
        def stopping(*arguments: Any, **options: Any) -> Any:
            label = name(*arguments)
            stop(f"before {label}")
            result = function(*arguments, **options)
            stop(f"after {label}")
            return result

        return stopping

    from botocore.httpsession import URLLib3Session

    os.fsync = around(os.fsync, _file)
    URLLib3Session.send = around(URLLib3Session.send, _call)  # type: ignore[method-assign]


def _file(descriptor: int) -> str:
    """For example "fsync launches/aws-1234-box.json"; a file that is being written has its final name in its own."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    if path.is_dir():
        return f"fsync {path.name}/"
    return f"fsync {path.parent.name}/{path.name.rpartition('.')[0].lstrip('.')}"


def _call(session: object, request: Any) -> str:
    if target := request.headers.get("X-Amz-Target"):
        return (target.decode() if isinstance(target, bytes) else str(target)).rpartition(".")[2]
    body = request.body.decode() if isinstance(request.body, bytes) else str(request.body)
    return parse_qs(body)["Action"][0]
