"""Public addresses: loopback ones, so that a machine is really reached at the address that EC2 names."""

from __future__ import annotations

import math
import secrets
import socket
import sys

SSH_PORT = 2222

# Linux answers on all of 127.0.0.0/8 without any setup. This quarter keeps clear of 127.0.0.1, of Debian's 127.0.1.1
# and of systemd-resolved's 127.0.0.53.
_FIRST = int.from_bytes(socket.inet_aton("127.64.0.0"), "big")
_COUNT = 2**22
_STRIDE = 1_656_443  # odd, so that its multiples visit every one of the 2**22 addresses before any comes again


class PublicAddresses:
    """Hands out addresses, none twice in a cloud's life: EC2 gives a started instance another address than it had."""

    def __init__(self) -> None:
        assert math.gcd(_STRIDE, _COUNT) == 1
        # Two sandboxes on one computer share the loopback network: each begins somewhere else.
        self._next = secrets.randbelow(_COUNT)

    def take(self) -> str:
        """The next address at which no one listens."""
        if sys.platform == "darwin":
            # macOS answers on 127.0.0.1 alone unless root adds aliases, so there one machine can run at a time.
            return "127.0.0.1"
        while True:
            self._next = (self._next + _STRIDE) % _COUNT
            address = socket.inet_ntoa((_FIRST + self._next).to_bytes(4, "big"))
            if _is_free(address):
                return address


def _is_free(address: str) -> bool:
    # The network's own address and the broadcast-like one of each /24 are legal here but look wrong to people.
    if address.endswith((".0", ".255")):
        return False
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, SSH_PORT))
        except OSError:
            return False
    return True
