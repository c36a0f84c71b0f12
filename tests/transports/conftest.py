from __future__ import annotations

from collections.abc import Iterator

import pytest

from gpuops.transports.ssh import SshTransport
from tests.transports import servers


@pytest.fixture(scope="session", params=["asyncssh", "openssh"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Server]:
    if reason := servers.why_not(request.param):
        pytest.skip(reason)
    with servers.serving(request.param, tmp_path_factory.mktemp(request.param)) as server:
        yield server


@pytest.fixture(scope="session")
def line(server: servers.Server) -> Iterator[SshTransport]:
    """A line that no test may break."""
    with SshTransport.connect(server.machine(), identity_file=server.client_key, connect_timeout_s=10) as line:
        yield line


@pytest.fixture
def wire(server: servers.Server) -> servers.Wire:
    return servers.Wire(server.address)


@pytest.fixture
def fragile_line(server: servers.Server, wire: servers.Wire) -> Iterator[SshTransport]:
    """A line that breaks when the test cuts its `wire`."""
    machine = server.machine(ssh=wire.address)
    with SshTransport.connect(machine, identity_file=server.client_key, connect_timeout_s=10) as line:
        yield line
