"""A cloud that the tests share, and computers that use it: each has its own gpuops home and ssh config."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config

from gpuops import cli, host_keys, providers, sandbox, settings, workflow
from gpuops.errors import GpuopsError
from gpuops.lifecycle import Clock, Plan
from gpuops.machine import Inventory, Machine, State
from gpuops.settings import Settings

BOOT_S = 0.1
REGION = "us-west-2"
_WITHIN_S = 30.0
_PAUSE_S = 0.03


def quick_clock(*, speed: float = 1.0) -> Clock:
    """A clock whose pauses are short here but count in full, `speed` times: ten minutes of waiting pass in seconds."""
    passed = 0.0

    def sleep(pause_s: float) -> None:
        nonlocal passed
        passed += pause_s * speed
        time.sleep(min(pause_s, _PAUSE_S))

    return Clock(monotonic=lambda: passed, sleep=sleep)


def until(condition: Callable[[], object], what: str) -> None:
    """Poll until the condition holds, or fail."""
    deadline = time.monotonic() + _WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {_WITHIN_S:g} s: {what}"
        time.sleep(_PAUSE_S)


def agree(_: object) -> None:
    """The person says yes."""


@dataclass
class Cloud:
    """A sandbox's cloud, looked at from outside gpuops: by boto3 and by its own HTTP address."""

    process: sandbox.Cloud
    clients: dict[tuple[str, str], Any] = field(default_factory=dict)
    launches: int = 0

    @property
    def environment(self) -> dict[str, str]:
        return sandbox.environment(self.process.folder, self.process)

    @property
    def aws_environment(self) -> dict[str, str]:
        return {name: value for name, value in self.environment.items() if not name.startswith("GPUOPS_")}

    @functools.cached_property
    def provider(self) -> providers.Provider:
        """Opened once: its clients for seventeen regions take half a second to make."""
        return providers.open("aws", settings.resolve({}, environ=self.environment, folder=Path("/nonexistent")))

    def token(self) -> str:
        """Another client token than any before."""
        self.launches += 1
        return f"{self.process.pid}-{self.launches}"

    def client(self, service: str = "ec2", region: str = REGION) -> Any:
        if (service, region) not in self.clients:
            self.clients[service, region] = boto3.client(
                service,
                region_name=region,
                endpoint_url=self.process.url,
                aws_access_key_id="testing",
                aws_secret_access_key="testing",
                config=Config(retries={"total_max_attempts": 1}),
            )
        return self.clients[service, region]

    def instances(self, name: str = "*", *, region: str = REGION, alive: bool = True) -> list[dict[str, Any]]:
        """The instances of that name, as EC2 describes them; by default those that still exist."""
        filters = [{"Name": "tag:gpuops:name", "Values": [name]}]
        if alive:
            states = ["pending", "running", "stopping", "stopped"]
            filters.append({"Name": "instance-state-name", "Values": states})
        answer = self.client(region=region).describe_instances(Filters=filters)
        return [instance for reservation in answer["Reservations"] for instance in reservation["Instances"]]

    def states(self, name: str, *, region: str = REGION) -> list[str]:
        return sorted(str(i["State"]["Name"]) for i in self.instances(name, region=region))

    def add_faults(self, *faults: Mapping[str, Any]) -> None:
        self.http("POST", "/gpuops/faults", list(faults))

    def lift_faults(self) -> None:
        self.http("DELETE", "/gpuops/faults")

    def calls(self, action: str) -> list[dict[str, Any]]:
        return [call for call in self.http("GET", "/gpuops/calls") if call["action"] == action]

    def http(self, method: str, path: str, body: object = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.process.url + path, data=data, method=method)
        with urllib.request.urlopen(request) as answer:
            return json.loads(answer.read() or b"null")

    def clean(self) -> None:
        """No faults, no machines."""
        self.lift_faults()
        for region in {call["region"] for call in self.calls("RunInstances")}:
            alive = [{"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]}]
            answer = self.client(region=region).describe_instances(Filters=alive)  # somebody else's too
            if ids := [i["InstanceId"] for reservation in answer["Reservations"] for i in reservation["Instances"]]:
                self.client(region=region).terminate_instances(InstanceIds=ids)

    def forget_firewall(self, region: str = REGION) -> None:
        """As in an account in which gpuops has never been; its machines have to be gone, or on their way."""
        ec2 = self.client(region=region)
        going = [{"Name": "instance-state-name", "Values": ["shutting-down"]}]
        until(lambda: not ec2.describe_instances(Filters=going)["Reservations"], "all are terminated")
        wanted = [{"Name": "group-name", "Values": ["gpuops"]}]
        for group in ec2.describe_security_groups(Filters=wanted)["SecurityGroups"]:
            ec2.delete_security_group(GroupId=group["GroupId"])

    def close(self) -> None:
        for client in self.clients.values():
            client.close()


@dataclass
class Computer:
    """A person's computer. `name` is the machine that its commands are about."""

    cloud: Cloud
    folder: Path
    name: str
    plans: list[Plan] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def home(self) -> Path:
        return self.folder / "gpuops"

    @property
    def ssh_config(self) -> Path:
        return self.folder / "ssh" / "config"

    @property
    def address_book(self) -> Path:
        """The ssh config that gpuops writes."""
        return self.folder / "ssh" / "gpuops.config"

    def settings(self, **flags: object) -> Settings:
        own = {"name": self.name, "home": self.home, "ssh_config": self.ssh_config}
        return settings.resolve({**own, **flags}, environ=self.cloud.environment, folder=Path("/nonexistent"))

    @property
    def client_key(self) -> str:
        return host_keys.public_key_line(host_keys.client_key(self.home / "keys"))

    def has_machine(self, state: State = State.RUNNING, **flags: object) -> Machine:
        """A machine that an earlier `up` of this computer has left in that state, made without going through `up`."""
        provider, wish = self.cloud.provider, self.settings(**{"types": "g4dn.xlarge", **flags}).wish()
        prepared = provider.prepare(wish, provider.offers(wish)[0], client_key=self.client_key)
        machine = provider.launch(prepared, self.cloud.token())
        until(lambda: provider.refresh(machine).state is State.RUNNING, f"{machine.id} runs")
        if state is State.STOPPED:
            provider.stop(machine)
            until(lambda: provider.refresh(machine).state is State.STOPPED, f"{machine.id} is stopped")
        return provider.refresh(machine)

    def up(
        self,
        *,
        clock: Clock | None = None,
        confirm: Callable[[Plan], None] = agree,
        tell: Callable[[str], None] = agree,
        **flags: object,
    ) -> Machine:
        def see(plan: Plan) -> None:
            self.plans.append(plan)
            confirm(plan)

        def hear(step: str) -> None:
            self.told.append(step)
            tell(step)

        return workflow.up(self.settings(**flags), confirm=see, tell=hear, clock=clock or quick_clock())

    def down(self, *, terminate: bool = False, discard: bool = False) -> Machine:
        return workflow.down(
            self.settings(),
            terminate=terminate,
            discard=discard,
            confirm=agree,
            tell=self.told.append,
            clock=quick_clock(),
        )

    def status(self) -> Inventory:
        return workflow.status(self.settings())

    def environment(self, **changes: str | None) -> dict[str, str]:
        """What a process on this computer has around it; None takes a variable away."""
        merged: dict[str, str | None] = {
            **os.environ,
            **self.cloud.environment,
            "GPUOPS_HOME": str(self.home),
            "GPUOPS_SSH_CONFIG": str(self.ssh_config),
            "GPUOPS_NAME": self.name,
            **changes,
        }
        return {name: value for name, value in merged.items() if value is not None}

    def process(self, *words: str, **changes: str | None) -> subprocess.Popen[str]:
        """`gpuops WORDS`, just started, its output in pipes, and no terminal to answer on."""
        return subprocess.Popen(
            command(*words),
            env=self.environment(**changes),
            cwd=self._work(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def gpuops(self, *words: str, **changes: str | None) -> Ran:
        """`gpuops WORDS`, run to its end."""
        with self.process(*words, **changes) as process:
            stdout, stderr = process.communicate(timeout=60)
        return Ran(tuple(words), process.returncode, stdout, stderr)

    def gpuops_here(self, *words: str, **changes: str | None) -> Ran:
        """The same without a process of its own, which would take half a second to import boto3."""
        environment, folder = dict(os.environ), Path.cwd()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
        stdout, stderr = io.StringIO(), io.StringIO()
        try:
            os.environ |= self.environment(**changes)
            for name in (name for name, value in changes.items() if value is None):
                os.environ.pop(name, None)
            os.chdir(self._work())
            with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
                cli.main(list(words))
        except SystemExit as end:
            return Ran(tuple(words), int(str(end.code)), stdout.getvalue(), stderr.getvalue())
        finally:
            os.chdir(folder)
            os.environ.clear()
            os.environ |= environment
            for number, handler in handlers.items():
                signal.signal(number, handler)

    def ssh(self, *words: str) -> Ran:
        """Plain `ssh -F CONFIG NAME WORDS`, as a person types it."""
        argv = ["ssh", "-F", str(self.address_book), self.name, *words]
        done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30)
        return Ran(tuple(argv), done.returncode, done.stdout, done.stderr)

    def _work(self) -> Path:
        """Where commands are typed: gpuops.toml is looked for here."""
        work = self.folder / "work"
        work.mkdir(parents=True, exist_ok=True)
        return work


@dataclass(frozen=True)
class Ran:
    """What a command did."""

    words: Sequence[str]
    exit_code: int
    stdout: str
    stderr: str

    @property
    def output(self) -> str:
        return self.stdout + self.stderr

    def failed(self, error: type[GpuopsError]) -> str:
        """What it said on stderr when it failed with this error, and without a traceback."""
        assert self.exit_code == error.exit_code, self
        assert self.stderr.startswith("Error: ") or "\nError: " in self.stderr, self
        assert "Traceback" not in self.output, self
        return self.stderr

    def succeeded(self) -> str:
        """What it said on stdout when it went well."""
        assert self.exit_code == 0, self
        return self.stdout


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "gpuops", *words]
