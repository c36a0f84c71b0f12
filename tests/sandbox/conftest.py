"""A real cloud process for the tests of the sandbox, asked over HTTP by boto3, as a client of AWS would."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from gpuops import sandbox

BOOT_S = 0.3
DEADLINE_S = 20.0
REGION = "us-east-1"


@dataclass
class Rig:
    """The session's cloud, and what most tests do with it."""

    cloud: sandbox.Cloud
    clients: dict[tuple[str, str, int], Any] = field(default_factory=dict)
    launched: list[str] = field(default_factory=list)

    def client(self, service: str = "ec2", region: str = REGION, *, attempts: int = 1) -> Any:
        key = (service, region, attempts)
        if key not in self.clients:
            self.clients[key] = boto3.client(
                service,
                region_name=region,
                endpoint_url=self.cloud.url,
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
                config=Config(retries={"total_max_attempts": attempts, "mode": "standard"}, max_pool_connections=20),
            )
        return self.clients[key]

    def image(self, region: str = REGION) -> str:
        name = "/aws/service/deeplearning/ami/x86_64/base-oss-nvidia-driver-gpu-ubuntu-22.04/latest/ami-id"
        return str(self.client("ssm", region).get_parameter(Name=name)["Parameter"]["Value"])

    def request(self, **parameters: Any) -> dict[str, Any]:
        least = {"ImageId": self.image(), "InstanceType": "g4dn.xlarge", "MinCount": 1, "MaxCount": 1}
        return {**least, "UserData": user_data(), **parameters}

    def launch(self, **parameters: Any) -> str:
        """RunInstances; the instance is terminated after the test."""
        [instance] = self.client().run_instances(**self.request(**parameters))["Instances"]
        self.launched.append(instance["InstanceId"])
        return str(instance["InstanceId"])

    def running(self, **parameters: Any) -> dict[str, Any]:
        return self.wait(self.launch(**parameters), "running")

    def describe(self, instance_id: str) -> dict[str, Any]:
        [reservation] = self.client().describe_instances(InstanceIds=[instance_id])["Reservations"]
        [instance] = reservation["Instances"]
        return dict(instance)

    def state(self, instance_id: str) -> str:
        return str(self.describe(instance_id)["State"]["Name"])

    def wait(self, instance_id: str, state: str) -> dict[str, Any]:
        """The instance, once it's in that state."""
        until(lambda: self.state(instance_id) == state, f"{instance_id} {state}")
        return self.describe(instance_id)

    def console(self, instance_id: str) -> str:
        # botocore decodes it already.
        return str(self.client().get_console_output(InstanceId=instance_id).get("Output", ""))

    def folder(self, instance_id: str) -> Path:
        return self.cloud.folder / "machines" / instance_id

    def add_faults(self, *faults: dict[str, Any]) -> None:
        self.http("POST", "/gpuops/faults", list(faults))

    def calls(self, action: str) -> list[dict[str, Any]]:
        return [call for call in self.http("GET", "/gpuops/calls") if call["action"] == action]

    def http(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(urllib.request.Request(self.cloud.url + path, data=data, method=method)) as answer:
            return json.loads(answer.read() or b"null")


def user_data(*bootcmd: str) -> str:
    """A cloud-config that runs these shell lines on every boot."""
    return "#cloud-config\nssh_pwauth: false\n" + f"bootcmd: {json.dumps(bootcmd)}\n"


def processes_of_machines(folder: Path, instance_id: str = "") -> list[int]:
    """The processes whose command line names a machine, or this machine, of this sandbox."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes().decode("utf-8", "replace")
        except OSError:
            continue
        if f"{folder}/machines/{instance_id}" in command:
            found.append(int(process.name))
    return found


def refused(call: Callable[..., Any], **parameters: Any) -> str:
    """The code of the error that EC2 answers."""
    with pytest.raises(ClientError) as raised:
        call(**parameters)
    return str(raised.value.response["Error"]["Code"])


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds, or fail."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.02)


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[sandbox.Cloud]:
    folder = tmp_path_factory.mktemp("cloud")
    yield sandbox.start(folder, boot_seconds=BOOT_S)
    sandbox.stop(folder)


@pytest.fixture(scope="session")
def _session_rig(cloud: sandbox.Cloud) -> Iterator[Rig]:
    rig = Rig(cloud)
    yield rig
    for client in rig.clients.values():
        client.close()


@pytest.fixture
def rig(_session_rig: Rig) -> Iterator[Rig]:
    yield _session_rig
    _session_rig.http("DELETE", "/gpuops/faults")
    if _session_rig.launched:
        _session_rig.client().terminate_instances(InstanceIds=_session_rig.launched)
        _session_rig.launched.clear()
