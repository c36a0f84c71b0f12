"""The one HTTP address of the cloud: AWS's API on every path, and under /gpuops/ what tests and the sandbox itself ask.

GET    /gpuops/cloud     who answers here: {"format", "pid"}
GET    /gpuops/calls     the API calls since the start, oldest first: [{"service", "action", "region", "time"}, …]
POST   /gpuops/faults    add to the plan of faults: [{"action": "RunInstances", "code": "InternalError", …}, …]
DELETE /gpuops/faults    forget the plan
"""

from __future__ import annotations

import io
import json
import os
import socket
import struct
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NoReturn
from urllib.parse import parse_qsl

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Request, Response

from gpuops.sandbox.faults import Call, Plan, error
from gpuops.sandbox.folder import FORMAT
from gpuops.sandbox.places import ENABLED_REGIONS
from gpuops.sandbox.services import Service, ServiceRefusal

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_CALLS_KEPT = 20_000
_JSON = "application/x-amz-json-1.1"


class Endpoint:
    """A WSGI application in front of moto's. `services` are answered here, by the name that requests are signed for."""

    def __init__(self, moto: WSGIApplication, lock: threading.RLock, services: Mapping[str, Service]) -> None:
        self._moto = moto
        self._lock = lock  # moto isn't made for threads; the timers of `Instances` take it too
        self._services = services
        self._plan = Plan()
        self._calls: deque[Call] = deque(maxlen=_CALLS_KEPT)

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(environ)
        answer = self._control(request) if request.path.startswith("/gpuops/") else self._api(request)
        return answer(environ, start_response)

    def _api(self, request: Request) -> Response:
        call = _read_call(request)
        self._calls.append(call)
        fault = self._plan.take(call)
        if fault is None:
            return self._carry_out(request, call)
        answer = _error(call, fault.code, fault.message, fault.status)
        if not fault.code or fault.after or fault.reset:
            carried_out = self._carry_out(request, call)
            answer = answer if fault.code else carried_out
        time.sleep(fault.hang_s)
        if fault.reset:
            _reset_connection(request.environ["werkzeug.socket"])
        return answer

    def _carry_out(self, request: Request, call: Call) -> Response:
        if call.region and call.region not in ENABLED_REGIONS:
            return _not_opted_in(call)
        try:
            with self._lock:
                if service := self._services.get(call.service):
                    return _json(service(call.action, request.get_json(force=True), call.region), _JSON)
                return Response.from_app(self._moto, request.environ, buffered=True)
        except ServiceRefusal as refusal:
            return _error(call, refusal.code, refusal.message)
        except Exception as failure:  # what we can't do; as a page of HTML, an SDK would only say that it can't read it
            traceback.print_exc()
            return _error(call, "Unimplemented", f"The sandbox can't carry out {call.action}: {failure!r}", 501)

    def _control(self, request: Request) -> Response:
        match (request.method, request.path):
            case ("GET", "/gpuops/cloud"):
                return _json({"format": FORMAT, "pid": os.getpid()})
            case ("GET", "/gpuops/calls"):
                return _json([_shown(call) for call in list(self._calls)])
            case ("POST", "/gpuops/faults"):
                try:
                    self._plan.add(request.get_json(force=True))
                except (TypeError, BadRequest) as problem:
                    return Response(f"{problem}\n", status=400)
                return Response(status=204)
            case ("DELETE", "/gpuops/faults"):
                self._plan.clear()
                return Response(status=204)
        return Response(status=404)


def _read_call(request: Request) -> Call:
    body = request.get_data()
    request.environ["wsgi.input"] = io.BytesIO(body)  # moto reads it again
    text = body.decode("utf-8", "replace")
    # AWS4-HMAC-SHA256 Credential=testing/20261123/us-east-1/ec2/aws4_request, SignedHeaders=…
    scope = request.headers.get("Authorization", "").partition(",")[0].split("/")
    region, service = (scope[2], scope[3]) if len(scope) > 3 else ("", "")
    target = request.headers.get("X-Amz-Target", "")
    parameters = dict(_flat(json.loads(text)) if target else parse_qsl(text))
    action = target.rpartition(".")[2] or parameters.get("Action", "")
    return Call(service, action, region, time.time(), parameters, is_json=bool(target))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """("Filters.1.Value", "g4dn.xlarge"), …"""
    if isinstance(value, dict | list):
        parts = value.items() if isinstance(value, dict) else enumerate(value, 1)
        for key, part in parts:
            yield from _flat(part, f"{name}.{key}" if name else str(key))
    else:
        yield name, str(value)


def _not_opted_in(call: Call) -> Response:
    """What AWS says in a region that the account hasn't enabled: it isn't known there at all."""
    if call.service == "ec2":
        return _error(call, "AuthFailure")
    return _error(call, "UnrecognizedClientException" if call.is_json else "InvalidClientTokenId")


def _reset_connection(line: socket.socket) -> NoReturn:
    """End the connection with RST, as when a machine on the way loses its state.

    The server would first say an orderly goodbye (FIN) at the end of the request. Putting something else in the place
    of the socket's descriptor closes it at once, and what the server does to it afterwards goes nowhere.
    """
    line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    nowhere = os.open(os.devnull, os.O_RDWR)
    os.dup2(nowhere, line.fileno(), inheritable=False)
    os.close(nowhere)
    raise ConnectionResetError("A fault of the plan.")


def _error(call: Call, code: str, message: str = "", status: int = 0) -> Response:
    answer = error(call, code, message, status)
    return Response(answer.body, status=answer.status, content_type=answer.content_type)


def _shown(call: Call) -> dict[str, object]:
    return {"service": call.service, "action": call.action, "region": call.region, "time": call.time}


def _json(value: Any, content_type: str = "application/json") -> Response:
    return Response(json.dumps(value), content_type=content_type)
