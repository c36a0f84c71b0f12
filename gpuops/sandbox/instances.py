"""The life of an instance: pending, running, stopping, stopped, shutting-down, terminated, and what each change takes.

moto's instances change state at once, a terminated one can be started again, and none of them runs anything. Here a
change takes time, is refused where EC2 refuses it, and a running instance has a machine.
"""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from datetime import datetime, timezone

import moto.ec2.models.elastic_network_interfaces
from moto.core.utils import utcnow
from moto.ec2.exceptions import EC2ClientError
from moto.ec2.models.instances import Instance, InstanceState, StateReason

from gpuops.sandbox.addresses import SSH_PORT, PublicAddresses
from gpuops.sandbox.hypervisor import POWERED_OFF, Boot, Hypervisor

_CODES = {"pending": 0, "running": 16, "shutting-down": 32, "terminated": 48, "stopping": 64, "stopped": 80}
_SETTLING_S = 0.3  # stopping → stopped and shutting-down → terminated; on EC2 it's tens of seconds
_CHECKS_S = 0.5  # running → its status checks have passed; on EC2 it's minutes

_PENDING = StateReason("pending", "pending")
_NONE = StateReason()
_BY_USER = StateReason("Client.UserInitiatedShutdown: User initiated shutdown", "Client.UserInitiatedShutdown")
_BY_SYSTEM = StateReason(
    "Client.InstanceInitiatedShutdown: Instance initiated shutdown", "Client.InstanceInitiatedShutdown"
)


class Instances:
    """Moves instances from state to state. Every method but the timers' is called with `lock` held."""

    def __init__(self, lock: threading.RLock, hypervisor: Hypervisor, *, boot_seconds: float) -> None:
        self._lock = lock
        self._hypervisor = hypervisor
        self._boot_s = boot_seconds
        self._checked_at: dict[str, float] = {}
        self._addresses = PublicAddresses()
        # moto imports the function by name, so it's replaced where it's used.
        moto.ec2.models.elastic_network_interfaces.random_public_ip = self._addresses.take  # type: ignore[attr-defined]

    def launched(self, instance: Instance) -> None:
        """Take over an instance that moto has just made."""
        for nic in instance.nics.values():
            nic.stop()  # an instance has no public address before it runs
        self._enter(instance, "pending", _PENDING)
        _later(self._boot_s, self._run, instance)

    def start(self, instance: Instance) -> InstanceState:
        """Begin to start it; returns the state before. Running already is success."""
        before = copy.copy(instance.instance_state)
        if before.name in ("pending", "running"):
            return before
        if before.name != "stopped":
            raise _incorrect_state(instance, "started")
        instance.launch_time = utcnow()  # EC2's LaunchTime is that of the last start: bills count from it
        self._enter(instance, "pending", _PENDING)
        _later(self._boot_s, self._run, instance)
        return before

    def stop(self, instance: Instance) -> InstanceState:
        """Begin to stop it; returns the state before. Stopped already is success."""
        before = copy.copy(instance.instance_state)
        if before.name in ("stopping", "stopped"):
            return before
        if before.name != "running":
            raise _incorrect_state(instance, "stopped")
        self._enter(instance, "stopping", _BY_USER, _user_initiated())
        _later(_SETTLING_S, self._finish_stop, instance)
        return before

    def terminate(self, instance: Instance) -> InstanceState:
        """Begin to delete it, whatever its state; returns the state before. Gone already is success."""
        before = copy.copy(instance.instance_state)
        if before.name not in ("shutting-down", "terminated"):
            self._enter(instance, "shutting-down", _BY_USER, _user_initiated())
            _later(_SETTLING_S, self._finish_terminate, instance)
        return before

    def reboot(self, instance: Instance) -> None:
        """Boot it again; it keeps its state and its address."""
        if instance.state != "running":
            raise _incorrect_state(instance, "rebooted")
        self._checked_at[instance.id] = time.monotonic() + _CHECKS_S
        self._hypervisor.reboot(instance.id)

    def health(self, instance: Instance) -> str:
        """What DescribeInstanceStatus says of it. moto says "ok" at once, and always."""
        if instance.state != "running":
            return "not-applicable"
        if self._hypervisor.has_crashed(instance.id):
            return "impaired"
        return "initializing" if time.monotonic() < self._checked_at[instance.id] else "ok"

    def _run(self, instance: Instance) -> None:
        with self._lock:
            if instance.state != "pending":  # terminated meanwhile
                return
            for nic in instance.nics.values():
                nic.start()  # takes a new public address
            self._enter(instance, "running", _NONE)
            self._checked_at[instance.id] = time.monotonic() + _CHECKS_S
            boot = Boot(
                instance_id=instance.id,
                # Without a public address it listens where nobody has been told.
                host=instance.public_ip or self._addresses.take(),
                port=SSH_PORT,
                user_data=str(instance.user_data or ""),
            )
            self._hypervisor.boot(boot, ended=lambda code: self._ended(instance, code))

    def _ended(self, instance: Instance, code: int) -> None:
        """The machine ended by itself. One that crashed is still running, for EC2 and for the bill."""
        with self._lock:
            if instance.state != "running" or code != POWERED_OFF:
                return
            if instance.instance_initiated_shutdown_behavior == "terminate":
                self._enter(instance, "shutting-down", _BY_SYSTEM)
                _later(_SETTLING_S, self._finish_terminate, instance)
            else:
                self._enter(instance, "stopping", _BY_SYSTEM)
                _later(_SETTLING_S, self._finish_stop, instance)

    def _finish_stop(self, instance: Instance) -> None:
        self._hypervisor.shut_down(instance.id)
        with self._lock:
            if instance.state != "stopping":  # terminated meanwhile
                return
            for nic in instance.nics.values():
                nic.stop()  # gives the public address back; the private one stays
            self._enter(instance, "stopped", instance.state_reason, instance._reason)

    def _finish_terminate(self, instance: Instance) -> None:
        self._hypervisor.shut_down(instance.id)
        with self._lock:
            root = instance.block_device_mapping.get(instance.root_device_name)
            reason, text = instance.state_reason, instance._reason
            instance.terminate()  # moto's: gives back addresses, deletes or frees the volumes
            self._enter(instance, "terminated", reason, text)
            if root is None or root.delete_on_termination:
                self._hypervisor.delete(instance.id)

    def _enter(self, instance: Instance, state: str, reason: StateReason, text: str = "") -> None:
        instance._state = InstanceState(state, _CODES[state])
        instance.state_reason = reason
        instance._reason = text


def _later(delay_s: float, action: Callable[[Instance], None], instance: Instance) -> None:
    timer = threading.Timer(delay_s, action, [instance])
    timer.daemon = True
    timer.start()


def _incorrect_state(instance: Instance, verb: str) -> Exception:
    return EC2ClientError(
        "IncorrectInstanceState", f"The instance '{instance.id}' is not in a state from which it can be {verb}."
    )


def _user_initiated() -> str:
    return f"User initiated ({datetime.now(timezone.utc):%Y-%m-%d %H:%M:%S} GMT)"
