"""Every error a person can meet, drawn as a tree. Each says what happened, what it left behind, and what to type next.

GpuopsError
├── BadInput             64  a word on the command line, a setting or a file is wrong
│   ├── UnknownProvider, UnknownRegion, UnknownType, UnknownMachine, UnknownRun, UnknownRecipe
│   └── BadName, BadSetting, BadData, NewerFormat
├── NoCredentials        65  the provider doesn't know who is asking
├── ProviderError        66  the vendor refused, or did not answer
│   ├── NothingOffered, NotPermitted, RegionNotEnabled, BadImage, NoNetwork, TokenSpent
│   └── VendorUnreachable, Throttled
├── AmbiguousMachine     67  several machines bear one name
├── StateError           68  the machine is in no state for this, or was too slow to reach one
├── ConnectionFailed     69  ssh did not work out
│   └── MachineUnreachable, HostKeyChanged, KeyRefused, PortInUse, NoSshProgram
├── RemoteCommandFailed  70  a command on the machine failed
│   └── RemoteFileMissing, DiskFull
├── SshConfigError       71  an ssh config can't be read or written
├── NotConfirmed         72  a question had no one to answer it, or the answer was no
├── RunError             73  a run can't start, or its results are not whole
│   └── UnfitMachine, JobRunning, ResultsDamaged, ResultsNotHome
├── SandboxError         74  the sandbox can't do that
├── Busy                 75  another gpuops command holds this machine
├── LocalTrouble         76  this computer's disk or permissions are in the way
├── NoCapacity           77  there is no room for such a machine now, or none for this account
│   └── UnsupportedType, QuotaExceeded
├── OverLimit            78  it would cost more than the person allowed
└── Bug                  79  gpuops itself is at fault
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

_LISTED_AT_MOST = 12


class GpuopsError(Exception):
    """`what` happened, what was `left_behind` (and what that costs), and the `next_step` to type.

    `exit_code` is one per family (64–79); `id` is stable and stands in ``--json``.
    """

    exit_code: ClassVar[int]
    id: ClassVar[str]

    def __init__(self, what: str, *, left_behind: str = "", next_step: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.left_behind = left_behind
        self.next_step = next_step


class BadInput(GpuopsError):
    exit_code = 64
    id = "bad-input"


class _Unknown(BadInput):
    """A name that is not among the known ones: says the closest and lists the rest."""

    noun: ClassVar[str]
    usual_next_step: ClassVar[str]

    def __init__(self, name: str, known: Iterable[str], *, next_step: str = "") -> None:
        names = sorted(known)
        closest = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        what = f"There is no {self.noun} {name!r}." + (f" Did you mean {closest[0]!r}?" if closest else "")
        if 0 < len(names) <= _LISTED_AT_MOST:
            what += f" There is: {', '.join(names)}."
        super().__init__(what, left_behind="Nothing was changed.", next_step=next_step or self.usual_next_step)


class UnknownProvider(_Unknown):
    id = "unknown-provider"
    noun = "provider"
    usual_next_step = "gpuops up --provider aws"


class UnknownRegion(_Unknown):
    id = "unknown-region"
    noun = "region"
    usual_next_step = "gpuops up --region us-west-2"


class UnknownType(_Unknown):
    id = "unknown-type"
    noun = "machine type"
    usual_next_step = "gpuops up --type g4dn.xlarge"


class UnknownMachine(_Unknown):
    id = "unknown-machine"
    noun = "machine"
    usual_next_step = "gpuops status"


class UnknownRun(_Unknown):
    id = "unknown-run"
    noun = "run"
    usual_next_step = "gpuops runs"


class UnknownRecipe(_Unknown):
    id = "unknown-recipe"
    noun = "recipe"
    usual_next_step = "gpuops train digits"


class BadName(BadInput):
    id = "bad-name"


class BadSetting(BadInput):
    id = "bad-setting"


class BadData(BadInput):
    id = "bad-data"


class NewerFormat(BadInput):
    id = "newer-format"


class NoCredentials(GpuopsError):
    exit_code = 65
    id = "no-credentials"


class ProviderError(GpuopsError):
    exit_code = 66
    id = "provider-error"


class NothingOffered(ProviderError):
    id = "nothing-offered"


class NotPermitted(ProviderError):
    id = "not-permitted"


class RegionNotEnabled(ProviderError):
    """The account has not opted in to this region."""

    id = "region-not-enabled"


class BadImage(ProviderError):
    id = "bad-image"


class NoNetwork(ProviderError):
    """The network that the machine would be in is missing, or has no way out."""

    id = "no-network"


class TokenSpent(ProviderError):
    """The launch token belongs to a machine that is gone, or to another request: a new launch needs a new token."""

    id = "token-spent"


class VendorUnreachable(ProviderError):
    """It is not known whether the call was carried out."""

    id = "vendor-unreachable"


class Throttled(VendorUnreachable):
    """Too many calls; this one was not carried out."""

    id = "throttled"


class AmbiguousMachine(GpuopsError):
    exit_code = 67
    id = "ambiguous-machine"


class StateError(GpuopsError):
    exit_code = 68
    id = "state-error"


class ConnectionFailed(GpuopsError):
    exit_code = 69
    id = "connection-failed"


class MachineUnreachable(ConnectionFailed):
    id = "machine-unreachable"


class HostKeyChanged(ConnectionFailed):
    id = "host-key-changed"


class KeyRefused(ConnectionFailed):
    id = "key-refused"


class PortInUse(ConnectionFailed):
    id = "port-in-use"


class NoSshProgram(ConnectionFailed):
    id = "no-ssh-program"


class RemoteCommandFailed(GpuopsError):
    exit_code = 70
    id = "remote-command-failed"
    result: object = None
    """The `gpuops.transports.Result`, where the command came to an end."""


class RemoteFileMissing(RemoteCommandFailed):
    id = "remote-file-missing"


class DiskFull(RemoteCommandFailed):
    id = "disk-full"


class SshConfigError(GpuopsError):
    exit_code = 71
    id = "ssh-config-error"


class NotConfirmed(GpuopsError):
    exit_code = 72
    id = "not-confirmed"


class RunError(GpuopsError):
    exit_code = 73
    id = "run-error"


class UnfitMachine(RunError):
    """The machine can't run the trainer (Python too old, no torch, no GPU); found before anything is shipped."""

    id = "unfit-machine"


class JobRunning(RunError):
    id = "job-running"


class ResultsDamaged(RunError):
    id = "results-damaged"


class ResultsNotHome(RunError):
    id = "results-not-home"


class SandboxError(GpuopsError):
    exit_code = 74
    id = "sandbox-error"


class Busy(GpuopsError):
    exit_code = 75
    id = "busy"


class LocalTrouble(GpuopsError):
    exit_code = 76
    id = "local-trouble"


class NoCapacity(GpuopsError):
    """No room; `scope` says what else needs not be tried: this "zone", this "type", or everything with its "quota"."""

    exit_code = 77
    id = "no-capacity"
    scope: str = "zone"


class UnsupportedType(NoCapacity):
    id = "unsupported-type"
    scope = "type"


class QuotaExceeded(NoCapacity):
    id = "quota-exceeded"
    scope = "quota"


class OverLimit(GpuopsError):
    exit_code = 78
    id = "over-limit"


class Bug(GpuopsError):
    exit_code = 79
    id = "bug"
