"""Everything that has to be well before a machine can be raised, each with how to mend it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable

from gpuops import notebooks, openssh, providers
from gpuops.errors import GpuopsError, SshConfigError
from gpuops.machine import Finding
from gpuops.settings import Settings
from gpuops.workflow.session import address_book

_PROGRAMS = {
    "ssh": "Without it, `gpuops ssh` and `ssh NAME` don't work. Debian and Ubuntu: apt install openssh-client",
    "rsync": "Without it, files travel as one stream, all of them each time. Debian and Ubuntu: apt install rsync",
}


def doctor(settings: Settings, *, show: Callable[[Finding], None]) -> list[Finding]:
    """What is well and what isn't, `show`n as it is found: this computer first, then the provider."""
    findings: list[Finding] = []

    def found(finding: Finding) -> None:
        findings.append(finding)
        show(finding)

    for program, mend in _PROGRAMS.items():
        path = shutil.which(program)
        found(Finding(name=program, is_well=path is not None, found=path or "not installed", mend=mend))
    found(_ssh_config(settings))
    found(_port())
    try:
        provider = providers.open(settings.provider, settings)
        for finding in provider.check(settings.wish()):
            found(finding)
    except GpuopsError as error:
        found(Finding(name=settings.provider, is_well=False, found=error.what, mend=error.next_step))
    return findings


def policy(settings: Settings) -> str:
    """The smallest set of permissions that suffices, as the provider's policy document."""
    return providers.open(settings.provider, settings).policy()


def _ssh_config(settings: Settings) -> Finding:
    try:
        address_book(settings).check()
        openssh.resolved(settings.ssh_config, settings.name)
    except SshConfigError as error:
        return Finding(name="ssh config", is_well=False, found=error.what, mend=error.next_step)
    return Finding(name="ssh config", is_well=True, found=str(settings.ssh_config))


def _port() -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", notebooks.PORT))
        except OSError as error:
            return Finding(
                name=f"port {notebooks.PORT}",
                is_well=False,
                found=f"taken here ({error.strerror})",
                mend="`gpuops notebook` takes the next free one; `ssh NAME-jupyter` needs it: see who has it: ss -ltnp",
            )
    return Finding(name=f"port {notebooks.PORT}", is_well=True, found="free for a notebook's tunnel")
