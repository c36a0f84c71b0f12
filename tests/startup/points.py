"""Stops this process before and after every call of AWS's API and every fsync, until whoever traces it says "go on".

`tests/kill_points.py` starts processes with this loaded, and kills them at a point from outside.
"""

from __future__ import annotations

import functools
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

_RUN_ID = re.compile(r"\d{8}T\d{6}-[0-9a-f]{6}")
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
    """For example "fsync launches/aws-1234-NAME": a file that is being written bears its final name in its own."""
    path = Path(f"/proc/self/fd/{descriptor}").readlink()
    file = "" if path.is_dir() else path.name.lstrip(".").split(".")[0].replace(os.environ["GPUOPS_NAME"], "NAME")
    return f"fsync {_RUN_ID.sub('RUN', path.name if path.is_dir() else path.parent.name)}/{file}"


def _call(session: object, request: Any) -> str:
    """For example "RunInstances", whether the service is asked by a form (EC2, STS) or by a header (SSM, pricing)."""
    fields = parse_qs(_text(request.body))
    action = _text(request.headers.get("X-Amz-Target")).rpartition(".")[2] or fields.get("Action", [""])[0]
    action = action or urlsplit(request.url).path
    return f"{action} everywhere" if action == "DescribeInstances" and "InstanceId.1" not in fields else action


def _text(value: object) -> str:
    return value.decode() if isinstance(value, bytes) else str(value or "")
