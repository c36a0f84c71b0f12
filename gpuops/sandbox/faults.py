"""Faults to order: a plan of errors, delays and lost answers that calls of the cloud's API meet.

They are served over HTTP, with EC2's own status codes, so that the SDK's retries are exercised too.
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any
from xml.sax.saxutils import escape


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, as it was sent."""

    service: str
    action: str
    region: str
    time: float
    parameters: Mapping[str, str]


@dataclass(slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` calls of `action`.

    With a `code`, they are answered with that error and HTTP `status` instead of being carried out. With `after`, they
    are carried out all the same: the caller gets an error for something that has happened. `hang_s` delays the answer;
    without a `code` it's all that happens. `region` and `match` (parameter: what its value contains) narrow the calls
    down.
    """

    action: str
    code: str = ""
    message: str = "A fault of the plan."
    status: int = 400
    times: int = 1
    after: bool = False
    hang_s: float = 0.0
    region: str = ""
    match: dict[str, str] = field(default_factory=dict)

    def meets(self, call: Call) -> bool:
        return (
            self.times > 0
            and self.action == call.action
            and self.region in ("", call.region)
            and all(part in call.parameters.get(name, "") for name, part in self.match.items())
        )


class Plan:
    """The faults that are still to come, in order. Safe to use from several threads."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()

    def add(self, faults: Iterable[Mapping[str, Any]]) -> None:
        """Raises TypeError where a fault has a key that there isn't."""
        new = [Fault(**fault) for fault in faults]
        with self._lock:
            self._faults += new

    def clear(self) -> None:
        with self._lock:
            self._faults.clear()

    def take(self, call: Call) -> Fault | None:
        """The fault that this call meets, used up by one."""
        with self._lock:
            for fault in self._faults:
                if fault.meets(call):
                    fault.times -= 1
                    return fault
        return None


def error_body(fault: Fault, call: Call) -> tuple[str, str]:
    """The error as the service words it, and its content type."""
    if call.service == "ssm":
        return json.dumps({"__type": fault.code, "message": fault.message}), "application/x-amz-json-1.1"
    error = f"<Code>{escape(fault.code)}</Code><Message>{escape(fault.message)}</Message>"
    request_id = uuid.uuid4()
    if call.service == "sts":
        text = f"<ErrorResponse><Error>{error}</Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    else:
        text = f"<Response><Errors><Error>{error}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', "text/xml;charset=UTF-8"
