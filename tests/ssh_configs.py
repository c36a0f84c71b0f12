"""Ssh configs as people have them, and what OpenSSH makes of one."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from gpuops import host_keys
from gpuops.machine import Address, Machine, State
from gpuops.ssh_config import AddressBook

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="there is no ssh program here")

KEY = host_keys.generate().public_line
HERE, ELSEWHERE = "203.0.113.7", "198.51.100.23"
"""Where the machine is, and where it was or will be."""


def machine(**changes: object) -> Machine:
    values: dict[str, object] = {
        "id": "i-0123456789abcdef0",
        "name": "fast-ai",
        "provider": "aws",
        "region": "us-west-2",
        "zone": "us-west-2a",
        "type": "g4dn.xlarge",
        "state": State.RUNNING,
        "ssh": Address(host=HERE, user="ubuntu", port=2222),
        "host_key": KEY,
    }
    return Machine(**{**values, **changes})  # type: ignore[arg-type]


def machine_at(host: str) -> Machine:
    return machine(ssh=Address(host=host, user="ubuntu", port=2222))


def address_book(config: Path, *, wait_s: float = 10.0, edits_user_config: bool = True) -> AddressBook:
    """That of a person whose own config this is; what else gpuops keeps is in a folder beside .ssh."""
    keys = config.parent.with_name("gpuops") / "keys"
    return AddressBook(user_config=config, keys=keys, wait_s=wait_s, edits_user_config=edits_user_config)


def start(book: AddressBook, host: str = HERE) -> tuple[str, ...]:
    """What `up` does with the machine, and what it tells the person to do."""
    book.check()
    book.update([machine_at(host)])
    book.bring_in(machine_at(host))
    return book.left_to_do(machine_at(host))


def our_line(book: AddressBook) -> bytes:
    return f'Include "{book.path}"'.encode()


def read_by_ssh(config: Path, name: str | bytes) -> tuple[int, bytes, bytes]:
    """How `ssh -G` ended, what it made of the config for this host, and its complaints."""
    argv = ["ssh", "-G", "-F", config, "--", name]
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, timeout=30)
    return done.returncode, done.stdout, done.stderr


def resolved(config: Path, name: str) -> dict[str, str]:
    """The same for a config that OpenSSH takes, by keyword."""
    ended, text, complaints = read_by_ssh(config, name)
    assert ended == 0, complaints
    return dict(line.split(" ", 1) for line in text.decode(errors="replace").splitlines() if " " in line)


PLAIN = b"Host work\n    HostName work.example.com\n    User me\n"

# What OpenSSH takes, but a program that reads it loosely might spoil.
ODD = {
    "nothing": b"",
    "no final newline": PLAIN[:-1],
    "CRLF": PLAIN.replace(b"\n", b"\r\n"),
    "mixed line ends": b"Host a\r\n\tHostName b\nHost c\n",
    "Latin-1": "# Zugänge für den Rechner im Büro\nHost büro\n    HostName buero.example.com\n".encode("latin-1"),
    "tabs and an equals sign": b"Host=work\n\tHostName\t=\twork.example.com\n",
    "a Match block": PLAIN + b'Match host work exec "true"\n  Port 2200\n',
    "an Include of its own": b"Include other.config\n\n" + PLAIN,
    "a NUL, which ends a line": PLAIN + b"# \x00\nHost other\0 fast-ai\n  HostName other.example.com\n",
    "blank lines": b"\n\n\n   \n",
    "a very long line": b"# " + b"x" * 100_000 + b"\n",
    "the machine's name in a pattern": b"Host fast*\n    ForwardAgent no\n" + PLAIN,
    "the machine's name in a comment": b"# Host fast-ai\n#   HostName 52.1.2.3\n" + PLAIN,
    "a block of the machine's without an address": b"Host fast-ai\n    ForwardAgent no\n",
}

# As they are found in the wild, with neutral names.
REAL = {
    "fast.ai 2017": b"""\
Host fast-ai
    HostName
    IdentityFile ~/.ssh/aws-key-fast-ai.pem
    User ubuntu
    LocalForward 8888 localhost:8888
""",
    "fast.ai 2017, once started, among others": b"""\
# added by setup_p2.sh
Host *
    ServerAliveInterval 50

Host fast-ai
    HostName ec2-52-40-1-2.us-west-2.compute.amazonaws.com
    IdentityFile ~/.ssh/aws-key-fast-ai.pem
    User ubuntu
    StrictHostKeyChecking no
    LocalForward 8888 localhost:8888

Host paperspace
    HostName 192.0.2.44
    User paperspace
""",
    "GitHub, twice": b"""\
Host github.com
  HostName github.com
  User git
  IdentityFile ~/.ssh/id_ed25519
  IdentitiesOnly yes

Host github-work
  HostName github.com
  User git
  IdentityFile ~/.ssh/id_ed25519_work
  IdentitiesOnly yes
""",
    "jump hosts": b"""\
Host bastion
\tHostName bastion.example.com
\tUser ops
\tControlMaster auto
\tControlPath ~/.ssh/cm-%r@%h:%p
\tControlPersist 10m

Host *.internal.example.com !bastion
\tProxyJump bastion
\tUser ops

Host db-?? db-old
\tProxyCommand ssh -W %h:%p bastion
\tPort 2222
""",
    "macOS keychain": b"""\
Host *
\tIgnoreUnknown UseKeychain
\tAddKeysToAgent yes
\tUseKeychain yes
\tIdentityFile ~/.ssh/id_rsa
""",
    "Colima and Vagrant": b"""\
Include /home/me/.colima/ssh_config

Host default
  HostName 127.0.0.1
  User vagrant
  Port 2222
  UserKnownHostsFile /dev/null
  StrictHostKeyChecking no
  PasswordAuthentication no
  IdentityFile "/home/me/my boxes/.vagrant/private_key"
  IdentitiesOnly yes
  LogLevel FATAL
""",
    "AWS SSM": b"""\
# SSH over Session Manager
host i-* mi-*
    ProxyCommand sh -c "aws ssm start-session --target %h --document-name AWS-StartSSHSession --param portNumber=%p"
""",
    "VS Code, on Windows": b"""\
# Read more about SSH config files: https://linux.die.net/man/5/ssh_config\r
Host 192.0.2.10\r
    HostName 192.0.2.10\r
    User me\r
\r
Host gpu box\r
    HostName gpu.example.com\r
    ForwardAgent yes""",
    "1Password": b"""\
Host *
\tIdentityAgent "~/Library/Group Containers/2BUA8C4S2C.com.1password/t/agent.sock"
Host fast-ai
\tHostName 192.0.2.99   # changes at every start
\tUser ubuntu
""",
    "old ciphers, for a switch": b"""\
HashKnownHosts yes
Host switch switch.example.com
    KexAlgorithms +diffie-hellman-group14-sha1
    HostKeyAlgorithms +ssh-rsa
    PubkeyAcceptedAlgorithms=+ssh-rsa
    SendEnv LANG LC_*
    RekeyLimit 1G 1h
""",
    "Match, by place": b"""\
Match originalhost fast-ai exec "false"
    HostName 10.0.0.5
Match host "*.example.com,!www.example.com" user me
    ForwardX11 = yes
Match all
    VisualHostKey no
""",
    "GCP, generated": b"""\
# Google Compute Engine Section
#
# The following has been auto-generated; do not edit.
Host trainer.us-central1-a.my-project
    HostName 192.0.2.7
    IdentityFile /home/me/.ssh/google_compute_engine
    UserKnownHostsFile=/home/me/.ssh/google_compute_known_hosts
    HostKeyAlias=compute.4711
    IdentitiesOnly=yes
    CheckHostIP=no

# End of Google Compute Engine Section
""",
    "ngrok and Tor": b"""\
Host *.onion
    ProxyCommand nc -X 5 -x 127.0.0.1:9050 %h %p

Host tunnel fast-ai
    HostName 0.tcp.example.com
    Port 12345
""",
}

# Blocks of the machine's that aren't edited, each with the line of it that gives the address.
UNSAFE = {
    "under a Match host": (b"Match host fast-ai\n  HostName 52.1.2.3\n", 2),
    "under a Match originalhost among others": (b'Match user me originalhost "work,fast-ai"\nHostName a\n', 2),
    "under a Match with an equals sign behind it": (b"Match host fast-ai=\n  HostName 52.1.2.3\n", 2),
    "under a Match in quotes": (b'Match "originalhost" "fast-ai"\n  HostName 52.1.2.3\n', 2),
    "under a Match with an equals sign": (b"Match host=fast-ai\n  HostName 52.1.2.3\n", 2),
    "twice": (b"Host fast-ai\n HostName 52.1.2.3\nHost work\n\nHost fast-ai\n HostName 52.1.2.4\n", 2),
    "twice, once under a Match": (b"Host fast-ai\n HostName 52.1.2.3\nMatch host fast-ai\n HostName a\n", 2),
    "of two names": (b"Host fast-ai work\n  HostName 52.1.2.3\n", 2),
    "of a name and a pattern": (b"Host fast-* fast-ai\n\n  HostName 52.1.2.3\n", 3),
    "a Host with an equals sign": (b"Host=fast-ai\n  HostName 52.1.2.3\n", 2),
    "a HostName with an equals sign": (b"Host fast-ai\n  HostName = 52.1.2.3\n", 2),
    "a HostName after an equals sign": (b"Host fast-ai\n  =HostName 52.1.2.3\n", 2),
    "a Host after an equals sign": (b" = Host fast-ai\n  HostName 52.1.2.3\n", 2),
    "a quoted keyword": (b'"Host" fast-ai\nHostName 52.1.2.3\n', 2),
    "a keyword with a quoted part": (b'Host fast-ai\nHost"Name" 52.1.2.3\n', 2),
    "two addresses": (b"Host fast-ai\n  User me\n  HostName 52.1.2.3\n  HostName 52.1.2.4\n", 3),
    "an escaped name": (b"Host fast\\-ai fast-ai\n  HostName 52.1.2.3\n", 2),
    "a name with quotes inside": (b'Host "f"ast-ai\n  HostName 52.1.2.3\n', 2),
    "a name in single quotes": (b"Host 'fast-ai'\n  HostName 52.1.2.3\n", 2),
    "an address in single quotes": (b"Host fast-ai\n  HostName '52.1.2.3'\n", 2),
    "a name before an equals sign": (b"Host fast-ai=x fast-ai\n  HostName 52.1.2.3\n", 2),
    "a name with a carriage return in the middle": (b"Host fast-ai\rwork fast-ai\n  HostName 52.1.2.3\n", 2),
}
