"""`gpuops notebook`: what it finds and starts, what it leaves, what it refuses."""

from __future__ import annotations

import json
import socket
import subprocess
import urllib.error
import urllib.request
from pathlib import Path

import pytest

from gpuops.errors import PortInUse, StateError, UnfitMachine
from gpuops.machine import Machine, State
from tests.computers import Cloud, Computer, until
from tests.notebooks import notebook

_NO_JUPYTER = """#!/bin/sh
case "$2" in *jupyterlab*) exit 1 ;; esac
exec {python}.real "$@"
"""


def machines_folder(cloud: Cloud, machine: Machine) -> Path:
    return cloud.process.folder / "machines" / machine.id


def test_jupyter_listens_to_the_machine_alone_and_asks_who_is_calling(computer: Computer) -> None:
    with notebook(computer, "--type", "g4dn.xlarge", "-y") as there:
        assert there.answers()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{there.port}/api/contents", timeout=10)
        with refused.value:
            assert refused.value.code == 403
        noted = json.loads(computer.ssh("cat .local/share/jupyter/runtime/jpserver-*.json").succeeded())
        with socket.socket() as elsewhere:
            elsewhere.bind(("127.0.0.2", noted["port"]))  # free, so it is not 0.0.0.0 that it listens on
        processes = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
        assert "-m notebook" in processes
        assert there.token not in processes


def test_ctrl_c_leaves_it_running_and_it_is_found_again_with_its_token(computer: Computer) -> None:
    with notebook(computer, "--type", "g4dn.xlarge", "-y") as there:
        first = there.token
        kernel = there.api("kernels", {}, method="POST")["id"]
        assert there.interrupt() == 130
    assert there.said(f"The notebook runs on, on {computer.name}, at $0.544/h; it stops by itself at ")
    assert there.said(f"gpuops notebook {computer.name} --stop")
    with notebook(computer) as again:
        assert not again.said("Starting Jupyter")
        assert again.token == first
        assert [k["id"] for k in again.api("kernels")] == [kernel]
    ended = computer.gpuops("notebook", computer.name, "--stop").succeeded()
    assert f"Jupyter has ended on {computer.name}, which runs on at $0.544/h." in ended
    assert f"gpuops down {computer.name}" in ended
    assert "No Jupyter runs" in computer.gpuops("notebook", computer.name, "--stop").succeeded()


def test_a_port_that_cannot_be_had_is_known_before_anything_is_launched(the_cloud: Cloud, computer: Computer) -> None:
    launches = len(the_cloud.calls("RunInstances"))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        said = computer.gpuops("notebook", "--port", port, "-y").failed(PortInUse)
    assert f"Port {port} is taken on this computer" in said
    assert len(the_cloud.calls("RunInstances")) == launches


def test_a_machine_without_jupyter_is_stopped_again_and_what_to_install_is_said(
    the_cloud: Cloud, computer: Computer
) -> None:
    machine = computer.has_machine(State.STOPPED)
    for name in ("python3", "python"):
        python = machines_folder(the_cloud, machine) / "bin" / name
        if python.exists():
            python.rename(f"{python}.real")
        else:
            python.with_name(f"{name}.real").symlink_to("/nonexistent")
        python.write_text(_NO_JUPYTER.format(python=python))
        python.chmod(0o755)
    said = computer.gpuops("notebook", "-y").failed(UnfitMachine)
    assert f"{computer.name} has no Jupyter." in said
    assert "gpuops/jupyter/bin/pip install notebook" in said
    until(lambda: the_cloud.states(computer.name) == ["stopped"], "it is stopped again")


def test_what_the_machine_notes_of_other_servers_chooses_nothing_here(the_cloud: Cloud, computer: Computer) -> None:
    machine = computer.up(types="g4dn.xlarge")
    home = machines_folder(the_cloud, machine) / "disk" / "home" / "ubuntu"
    folder = home / ".local/share/jupyter/runtime"
    folder.mkdir(parents=True)
    good = {"base_url": "/", "hostname": "localhost", "port": 1, "pid": 1, "token": "a" * 48, "password": False}
    bad = (
        {"hostname": "0.0.0.0"},  # open to all
        {"token": ""},  # asks nobody who they are
        {"token": "a\n b"},
        {"base_url": "/;rm -rf"},
        {"port": 70000},
        {"port": "x"},
        {"pid": "$(reboot)"},
        {"secure": True},
    )
    # Something that looks like Jupyter, so that what is noted of it counts.
    start = "exec -a jupyter-notebook sleep 300 </dev/null >/dev/null 2>&1 & echo $!"
    pid = computer.ssh(f"bash -c '{start}'").succeeded().strip()
    for number, change in enumerate(bad):
        (folder / f"nbserver-{pid}.json").write_text(json.dumps({**good, **change}))
        said = computer.gpuops("notebook", "--stop").succeeded()
        assert "No Jupyter runs" in said, (number, change)
    (folder / f"nbserver-{pid}.json").write_text("no JSON")
    assert "No Jupyter runs" in computer.gpuops("notebook", "--stop").succeeded()


def test_to_stop_it_starts_no_machine(computer: Computer) -> None:
    computer.has_machine(State.STOPPED)
    assert f"{computer.name} is stopped." in computer.gpuops("notebook", "--stop").failed(StateError)
