"""The one HTTP address of the cloud: AWS's API on every path, and under /gpuops/ what tests and the sandbox itself ask.

GET    /gpuops/cloud     who answers here: {"format", "pid"}
GET    /gpuops/calls     the API calls since the start, oldest first: [{"service", "action", "region", "time"}, …]
POST   /gpuops/faults    add to the plan of faults: [{"action": "RunInstances", "code": …, "status": 500, …}, …]
DELETE /gpuops/faults    forget the plan
"""

from __future__ import annotations

import io
import json
import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from werkzeug.exceptions import BadRequest
from werkzeug.wrappers import Request, Response

from gpuops.sandbox.faults import Call, Fault, Plan, error_body
from gpuops.sandbox.folder import FORMAT

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

_CALLS_KEPT = 20_000


class Endpoint:
    """A WSGI application in front of moto's."""

    def __init__(self, moto: WSGIApplication, lock: threading.RLock) -> None:
        self._moto = moto
        self._lock = lock  # moto isn't made for threads; the timers of `Instances` take it too
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
        answer = _error(fault, call)
        if not fault.code:
            answer = self._carry_out(request, call)
        elif fault.after:
            self._carry_out(request, call)
        time.sleep(fault.hang_s)
        return answer

    def _carry_out(self, request: Request, call: Call) -> Response:
        try:
            with self._lock:
                return Response.from_app(self._moto, request.environ, buffered=True)
        except Exception as error:  # what moto can't do; as a page of HTML, an SDK would only say that it can't read it
            traceback.print_exc()
            why = f"The sandbox can't carry out {call.action}: {error!r}"
            return _error(Fault(action=call.action, code="Unimplemented", message=why, status=501), call)

    def _control(self, request: Request) -> Response:
        match (request.method, request.path):
            case ("GET", "/gpuops/cloud"):
                return _json({"format": FORMAT, "pid": os.getpid()})
            case ("GET", "/gpuops/calls"):
                return _json([_shown(call) for call in list(self._calls)])
            case ("POST", "/gpuops/faults"):
                try:
                    self._plan.add(request.get_json(force=True))
                except (TypeError, BadRequest) as error:
                    return Response(f"{error}\n", status=400)
                return Response(status=204)
            case ("DELETE", "/gpuops/faults"):
                self._plan.clear()
                return Response(status=204)
        return Response(status=404)


def _read_call(request: Request) -> Call:
    body = request.get_data()
    request.environ["wsgi.input"] = io.BytesIO(body)  # moto reads it again
    target = request.headers.get("X-Amz-Target", "")
    parameters = {} if target else dict(parse_qsl(body.decode("utf-8", "replace")))
    # AWS4-HMAC-SHA256 Credential=testing/20261123/us-east-1/ec2/aws4_request, SignedHeaders=…
    scope = request.headers.get("Authorization", "").partition(",")[0].split("/")
    region, service = (scope[2], scope[3]) if len(scope) > 3 else ("", "")
    action = target.rpartition(".")[2] or parameters.get("Action", "")
    return Call(service, action, region, time.time(), parameters)


def _error(fault: Fault, call: Call) -> Response:
    body, content_type = error_body(fault, call)
    return Response(body, status=fault.status, content_type=content_type)


def _shown(call: Call) -> dict[str, object]:
    return {"service": call.service, "action": call.action, "region": call.region, "time": call.time}


def _json(value: Any) -> Response:
    return Response(json.dumps(value), content_type="application/json")
