"""The cloud's HTTP server: moto's EC2, SSM and STS, made faithful, and services of our own, behind our endpoint."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

# moto reads it when it's imported: its 1177 images take seconds to load in each region.
os.environ["MOTO_EC2_LOAD_DEFAULT_AMIS"] = "false"

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.test import Client

from gpuops.sandbox import ec2, pricing, quotas
from gpuops.sandbox.endpoint import Endpoint
from gpuops.sandbox.hypervisor import Hypervisor
from gpuops.sandbox.instance_connect import InstanceConnect
from gpuops.sandbox.instances import Instances

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication, WSGIEnvironment


def make(hypervisor: Hypervisor, *, boot_seconds: float) -> BaseWSGIServer:
    """A server that listens on a free port of 127.0.0.1 and answers its first call as fast as any."""
    lock = threading.RLock()
    ec2.install(Instances(lock, hypervisor, boot_seconds=boot_seconds), hypervisor)
    moto = DomainDispatcherApplication(create_backend_app)
    _warm_up(moto)
    # By ourselves: moto has a part of one of them, and importing it would take time from every start.
    services = {
        "ec2-instance-connect": InstanceConnect(hypervisor).answer,
        "pricing": pricing.answer,
        "servicequotas": quotas.answer,
    }
    endpoint = Endpoint(moto, lock, services)
    return make_server("127.0.0.1", 0, endpoint, threaded=True, request_handler=_RequestHandler)


def _warm_up(moto: WSGIApplication) -> None:
    """Make moto import and load now what it otherwise would with the first request of each service."""
    form, json = "application/x-www-form-urlencoded", "application/x-amz-json-1.1"
    for service, content_type, body, target in (
        ("ec2", form, "Action=DescribeRegions", ""),
        ("sts", form, "Action=GetCallerIdentity", ""),
        ("ssm", json, "{}", "AmazonSSM.DescribeParameters"),
    ):
        scope = f"AWS4-HMAC-SHA256 Credential=testing/20260101/us-east-1/{service}/aws4_request"
        headers = {"Authorization": scope, "X-Amz-Target": target}
        Client(moto).post(data=body, content_type=content_type, headers=headers)


class _RequestHandler(MotoRequestHandler):
    # Head and body of an answer are two writes: without this, the second waits 40 ms for the client's delayed ACK.
    disable_nagle_algorithm = True

    def connection_dropped(self, error: BaseException, environ: WSGIEnvironment | None = None) -> None:
        """Else it would look for another request on a connection that is no more."""
        self.close_connection = True

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Not a line for each request; what went wrong still is logged."""
