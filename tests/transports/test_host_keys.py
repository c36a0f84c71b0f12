from __future__ import annotations

import stat
import subprocess
import sys
from pathlib import Path

import pytest

from gpuops import host_keys
from gpuops.errors import BadData


def test_a_generated_key_is_one_that_openssh_reads(tmp_path: Path) -> None:
    pair = host_keys.generate()
    path = tmp_path / "key"
    path.touch(mode=0o600)
    path.write_text(pair.private_text)
    assert host_keys.public_key_line(path) == pair.public_line
    assert len(pair.public_line.split()) == 2
    assert pair.private_text not in repr(pair)


# Made by OpenSSH's ssh-keygen, whose `-l` printed the fingerprint.
@pytest.mark.parametrize("comment", ["", " someone@somewhere"])
def test_the_fingerprint_is_openssh_s(comment: str) -> None:
    line = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIMq3F9cMf9cT4/yG7t1hrUEytF7GJlZWebqo7TTQNbEh"
    assert host_keys.fingerprint(line + comment) == "SHA256:kaXByBKZCUMnuZXVijFjqZNxnYXiqA1tULt3GfI5FhI"


def test_the_client_key_is_made_once(tmp_path: Path) -> None:
    folder = tmp_path / "new" / "keys"
    path = host_keys.client_key(folder)
    private = path.read_bytes()
    assert path == folder / "id_ed25519"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert (folder / "id_ed25519.pub").read_text() == host_keys.public_key_line(path) + "\n"
    assert host_keys.client_key(folder).read_bytes() == private
    assert sorted(entry.name for entry in folder.iterdir()) == ["id_ed25519", "id_ed25519.pub"]


def test_a_lost_public_part_is_made_again_from_the_private_one(tmp_path: Path) -> None:
    public = host_keys.client_key(tmp_path).with_name("id_ed25519.pub")
    line = public.read_text()
    public.unlink()
    host_keys.client_key(tmp_path)
    assert public.read_text() == line


def test_processes_that_start_together_all_get_the_same_key(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from gpuops import host_keys; sys.stdin.read();"
        "print(host_keys.public_key_line(host_keys.client_key(Path(sys.argv[1]))))"
    )
    argv = [sys.executable, "-c", script, str(tmp_path / "keys")]
    starting = [subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for process in starting:
        assert process.stdin is not None
        process.stdin.close()
        process.stdin = None
    lines = {process.communicate()[0] for process in starting}
    assert len(lines) == 1
    assert lines == {(tmp_path / "keys" / "id_ed25519.pub").read_text()}
    assert len(list((tmp_path / "keys").iterdir())) == 2


def test_a_damaged_client_key_is_kept_and_named(tmp_path: Path) -> None:
    path = host_keys.client_key(tmp_path)
    path.write_text("damaged")
    with pytest.raises(BadData, match="can't be read") as caught:
        host_keys.client_key(tmp_path)
    assert str(path) in caught.value.what
    assert f"mv {path}" in caught.value.next_step
    assert path.read_text() == "damaged"


def test_the_public_half_of_a_key_with_a_passphrase_is_read_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "mine"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "secret", "-C", "me", "-f", path], check=True)
    public = path.with_name("mine.pub")
    assert f"{host_keys.public_key_line(path)} me\n" == public.read_text()
    public.unlink()
    with pytest.raises(BadData, match="has a passphrase") as caught:
        host_keys.public_key_line(path)
    assert f"ssh-keygen -y -f {path} >{public}" in caught.value.next_step


def test_known_hosts_has_a_line_for_each_key_of_each_alias() -> None:
    first, second = host_keys.generate().public_line, host_keys.generate().public_line
    text = host_keys.known_hosts_text({"gpuops-b": [second, first], "gpuops-a": [first + " root@box\n"]})
    assert text == f"gpuops-a {first}\ngpuops-b {second}\ngpuops-b {first}\n"
    assert host_keys.known_hosts_text({}) == ""


@pytest.mark.parametrize("name", ["", "*", "a,b", "a b", "a\nb", "!a", "|1|x", "@revoked", "#a"])
def test_a_name_that_would_mean_other_machines_too_is_refused(name: str) -> None:
    with pytest.raises(BadData):
        host_keys.known_hosts_text({name: [host_keys.generate().public_line]})


@pytest.mark.parametrize(
    "line", ["", "ssh-ed25519", "ssh-ed25519 !!", "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAIA==", "nonsense"]
)
def test_what_is_no_public_key_is_refused(line: str) -> None:
    with pytest.raises(BadData, match="not a public key"):
        host_keys.fingerprint(line)
