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

# An error's status and text, where the plan says neither: as EC2 has them.
_ERRORS = {
    "AccessDeniedException": (
        400,
        "User: arn:aws:iam::123456789012:user/sandbox is not authorized to perform: {service}:{action} "
        "because no identity-based policy allows the {service}:{action} action",
    ),
    "AuthFailure": (401, "AWS was not able to validate the provided access credentials"),
    "DryRunOperation": (412, "Request would have succeeded, but DryRun flag is set."),
    "ExpiredToken": (403, "The security token included in the request is expired"),
    "InsufficientInstanceCapacity": (500, "Insufficient capacity."),
    "InternalError": (500, "An internal error has occurred"),
    "InvalidClientTokenId": (403, "The security token included in the request is invalid."),
    "RequestLimitExceeded": (503, "Request limit exceeded."),
    "UnauthorizedOperation": (
        403,
        "You are not authorized to perform this operation. User: arn:aws:iam::123456789012:user/sandbox is not "
        "authorized to perform: {service}:{action} on resource: arn:aws:ec2:{region}:123456789012:* because no "
        "identity-based policy allows the {service}:{action} action. Encoded authorization failure message: "
        "Ql8pY1c3r0UxVt5uS2hDn7wZ4mKbEoGx9aJfTiLqRv6XyNzPdMkCsWeHgBtAjUoI0",
    ),
    "Unavailable": (503, "The service is unavailable. Please try again shortly."),
    "UnrecognizedClientException": (400, "The security token included in the request is invalid."),
    "VcpuLimitExceeded": (
        400,
        "You have requested more vCPU capacity than your current vCPU limit of 0 allows for the instance bucket that "
        "the specified instance type belongs to. Please visit http://aws.amazon.com/contact-us/ec2-request to request "
        "an adjustment to this limit.",
    ),
}
_OTHER = (400, "A fault of the plan.")


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the API, as it was sent.

    `parameters` are flat, as EC2's protocol has them ("Placement.AvailabilityZone", "Filter.1.Value.1"), also where
    the service's protocol is JSON.
    """

    service: str
    action: str
    region: str
    time: float
    parameters: Mapping[str, str]
    is_json: bool = False


@dataclass(slots=True, kw_only=True)
class Fault:
    """What happens to the next `times` calls of `action`; -1: to all.

    With a `code`, they are answered with that error instead of being carried out; HTTP `status` and `message` are EC2's
    own unless they are given. With `after`, they are carried out all the same: the caller gets an error for something
    that has happened. With `reset`, they are carried out and the connection is reset instead of an answer. `hang_s`
    delays what the caller gets; alone, it's all that happens.

    `region` and `match` (parameter: what its value contains) narrow the calls down; the parameter "*" is any.
    """

    action: str
    code: str = ""
    message: str = ""
    status: int = 0
    times: int = 1
    after: bool = False
    reset: bool = False
    hang_s: float = 0.0
    region: str = ""
    match: dict[str, str] = field(default_factory=dict)

    def meets(self, call: Call) -> bool:
        return (
            self.times != 0
            and self.action == call.action
            and self.region in ("", call.region)
            and all(_contains(call, name, part) for name, part in self.match.items())
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
                    fault.times -= fault.times > 0
                    return fault
        return None


@dataclass(frozen=True, slots=True)
class ErrorAnswer:
    """An error as a service words it."""

    status: int
    body: str
    content_type: str


def error(call: Call, code: str, message: str = "", status: int = 0) -> ErrorAnswer:
    """The answer to this call; status and message are EC2's own unless they are given."""
    usual_status, usual_message = _ERRORS.get(code, _OTHER)
    status = status or usual_status
    message = message or usual_message.format(service=call.service, action=call.action, region=call.region)
    if call.is_json:
        return ErrorAnswer(status, json.dumps({"__type": code, "message": message}), "application/x-amz-json-1.1")
    words = f"<Code>{escape(code)}</Code><Message>{escape(message)}</Message>"
    request_id = uuid.uuid4()
    if call.service == "sts":
        text = f"<ErrorResponse><Error>{words}</Error><RequestId>{request_id}</RequestId></ErrorResponse>"
    else:
        text = f"<Response><Errors><Error>{words}</Error></Errors><RequestID>{request_id}</RequestID></Response>"
    return ErrorAnswer(status, f'<?xml version="1.0" encoding="UTF-8"?>\n{text}', "text/xml;charset=UTF-8")


def _contains(call: Call, name: str, part: str) -> bool:
    if name == "*":
        return any(part in value for value in call.parameters.values())
    return part in call.parameters.get(name, "")
