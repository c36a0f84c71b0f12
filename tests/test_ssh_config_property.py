"""Configs made up of every oddity: OpenSSH itself says that each host but the machine's is reached as before (law 5).

`make soak` tries fifty times as many.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hypothesis import event, given
from hypothesis import strategies as st

from gpuops.ssh_config import AddressBook, blocks
from tests.ssh_configs import ELSEWHERE, HERE, ODD, REAL, UNSAFE, machine_at, needs_ssh, read_by_ssh

pytestmark = needs_ssh

FOLDER, OUR_LINE = b"@FOLDER@", b"@OUR LINE@"  # known only when the config is written
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
OTHERS = (b"work", b"gpu", b"b\xfcro", b"git.example.com", b"fast-ai-2", b"extra")
NAMES = (*OTHERS, b"fast*", b"?ast-ai", b"!work", b"*.example.com", b"*", b"FAST-AI", b'"gpu"', b"wo\\rk")


def one(*texts: bytes) -> st.SearchStrategy[bytes]:
    return st.sampled_from(texts)


def often(usual: bytes, *odd: bytes) -> st.SearchStrategy[bytes]:
    return st.integers(0, 3).flatmap(lambda luck: one(*odd) if luck == 0 else st.just(usual))


def seldom(odd: st.SearchStrategy[bytes], usual: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.integers(0, 7).flatmap(lambda luck: odd if luck == 0 else usual)


indents = often(b"  ", b"", b"\t", b" \t ", b"=", b" = ", b"\r ", b'""', b"\f")
separators = often(b" ", b"\t", b" \t", b"=", b" = ", b"\t=\t", b"\r", b"  ")
ends = often(b"\n", b"\r\n", b" \n", b"\t\r\n", b"\f\n", b"\0\n", b" # comment\n")
hosts = often(b"Host", b"host", b"HOST", b'"Host"', b'H"ost"')
host_names = often(b"HostName", b"hostname", b"HOSTNAME", b'"HostName"', b'Host"Name"', b"HostName\f")
addresses = often(
    b"52.1.2.3",
    *(b"ec2-52-1-2-3.us-west-2.compute.amazonaws.com", b"2001:db8::1", b'"52.1.2.3"', b"'52.1.2.3'", b"b\xfcro"),
    *(b"%h.example.com", b"52.1.2.3 # stale", b'"52.1.2.3" # stale', b"52.1.2.3#x", b"52.1.2.3\rx", b"52.1.2.3\0x"),
    *(b"52\\.1", b"=52.1.2.3", b'"a b"'),
)
# With these, OpenSSH refuses the whole file.
no_addresses = one(b"", b'""', b"# stale", b"a b", b'"a', b"\0 52.1.2.3")
options = one(
    *(
        b"User me",
        b"Port 2200",
        b"LocalForward 8888 localhost:8888",
        b"IdentityFile ~/.ssh/aws.pem",
        b"ForwardAgent yes",
    ),
    *(b"ServerAliveInterval=30", b"ProxyJump bastion", b'ProxyCommand sh -c "nc %h %p"', b"SendEnv LANG LC_*"),
    *(b"IgnoreUnknown UseKeychain,Host_Name", b"HostKeyAlias box", b'User = "me too"', b"Compression\tyes"),
)
comments = one(
    *(
        b"",
        b"   ",
        b"# Host fast-ai",
        b"#HostName 52.1.2.3",
        b"# Zug\xe4nge",
        b"# \0 Host fast-ai",
        b"# " + b"x" * 9000,
    ),
    *(b'"HostName 52.1.2.3', b"\0Host fast-ai", b"==Host fast-ai", b"  \r", b"# \xe2\x80\xa8Host fast-ai"),
)
includes = one(
    *(b"Include @FOLDER@/extra.conf", b'Include "@FOLDER@/*.conf" @FOLDER@/missing', b"Include=@FOLDER@/config.*"),
    b"include\t@FOLDER@/gpuops.config",
)
criteria = one(
    *(
        b"host fast-ai",
        b'host "fast-ai,work"',
        b"host=fast-ai",
        b"originalhost gpu",
        b"all",
        b'exec "true"',
        b"user me",
    ),
    *(
        b'host work exec "false"',
        b"!host fast-ai",
        b"originalhost fast-ai user root",
        b"final",
        b"canonical",
        b"host *",
    ),
)


def lines(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(indents, content, ends).map(b"".join)


def joined(*parts: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    return st.tuples(*parts).map(b"".join)


heads = st.one_of(
    joined(hosts, separators, often(b"fast-ai", b'"fast-ai"', b"fast-ai # x", b"'fast-ai'", b"fast-ai fast")),
    joined(hosts, separators, st.lists(one(*NAMES), min_size=1, max_size=3).map(b" ".join)),
    joined(hosts, separators, one(*NAMES), st.just(b" fast-ai")),
    joined(st.just(b"Match"), separators, criteria),
)
bodies = st.lists(
    st.one_of(
        lines(joined(host_names, separators, addresses)), *(lines(o) for o in (options, options, comments, includes))
    ),
    max_size=4,
).map(b"".join)
blocks_of_any = joined(lines(heads), bodies)
blocks_of_the_machine = joined(
    often(b"Host fast-ai\n", b"Host fast-ai\r\n", b"\thost\tfast-ai \n", b"Host fast-ai # mine\n", b'Host "fast-ai"\n'),
    *(lines(options), lines(joined(st.just(b"HostName"), separators, addresses)), bodies),
)
blocks_refused = joined(often(b"Host fast-ai\n", b"Host work\n"), lines(joined(st.just(b"HostName "), no_addresses)))
unrelated = st.lists(one(*(text for text in REAL.values() if b"fast-ai" not in text)) | bodies, max_size=2).map(
    b"".join
)
samples = one(*ODD.values(), *REAL.values(), *(text for text, _ in UNSAFE.values()))
chunks = seldom(
    blocks_refused | st.just(OUR_LINE + b"\n"),
    st.one_of(blocks_of_any, blocks_of_any, blocks_of_the_machine, bodies, joined(samples, st.just(b"\n"))),
)
configs = joined(
    seldom(often(b"", BYTE_ORDER_MARK), st.just(b"")),
    st.lists(chunks, max_size=4).map(b"".join),
    often(b"\n", b"", b"# the end", b"\r\n", b"Host fast-ai\n\tHostName 52.1.2.3", b"Host fast-ai\n HostName"),
)


@dataclass(frozen=True)
class _Home:
    folder: Path
    config: Path
    book: AddressBook
    our_line: bytes

    def has(self, text: bytes) -> bytes:
        """The config, with what only this folder knows."""
        text = text.replace(FOLDER, os.fsencode(self.folder)).replace(OUR_LINE, self.our_line)
        self.config.write_bytes(text)
        return text

    def start(self, host: str) -> tuple[str, ...]:
        """What `up` says to the person, after it has done what it can."""
        self.book.bring_in(machine_at(host))
        return self.book.left_to_do(machine_at(host))


@contextmanager
def a_home() -> Iterator[_Home]:
    with tempfile.TemporaryDirectory(prefix="gpuops-home.") as name:
        folder = Path(name)
        (folder / "extra.conf").write_text("Host extra gpu\n  HostName extra.example.com\n")
        config = folder / "config"
        book = AddressBook(user_config=config, keys=folder / "keys")
        book.update([machine_at(HERE)])
        yield _Home(folder, config, book, f'Include "{folder}/gpuops.config"'.encode())


def undone(before: bytes, after: bytes, our_line: bytes) -> tuple[bytes, int | None]:
    """`after` without what a start may change: our line at its top, and the word after one HostName; and its line."""
    if our_line not in [line.rstrip(b"\r") for line in before.split(b"\n")] and after.startswith(our_line):
        after = after.removeprefix(our_line).removeprefix(b"\r").removeprefix(b"\n")
    old, new = before.split(b"\n"), after.split(b"\n")
    changed = [number for number, pair in enumerate(zip(old, new, strict=True)) if pair[0] != pair[1]]
    if not changed:
        return after, None
    [number] = changed
    left, right = new[number].split(HERE.encode())
    assert re.fullmatch(rb'[ \t\r]*hostname[ \t\r]+"?', left, re.I)
    word = old[number].removeprefix(left).removesuffix(right) if len(old[number]) >= len(left + right) else b""
    assert re.fullmatch(rb'[^"]*' if left.endswith(b'"') else rb'[^ \t\r"\0]*', word)
    new[number] = left + word + right if word or left.endswith(b'"') else left.removesuffix(b" ") + right
    return b"\n".join(new), number


@given(configs)
def test_every_byte_but_ours_stays_and_every_host_but_the_machine_is_reached_as_before(text: bytes) -> None:
    with a_home() as home:
        before = home.has(text)
        others = [*(name for name in OTHERS if name in before), b"nobody.example.com"]
        seen = {
            name: resolved for name in others for ended, resolved, _ in [read_by_ssh(home.config, name)] if not ended
        }
        was_good = read_by_ssh(home.config, "fast-ai")[0] == 0

        told = home.start(HERE)
        after = home.config.read_bytes()
        original, number = undone(before, after, home.our_line)
        assert original == before
        if number is not None:
            above = [line for line in before.split(b"\n")[:number] if re.match(rb"\s*(host|match)\s", line, re.I)]
            assert re.fullmatch(rb'\s*host\s+"?fast-ai"?\s*(#.*)?', above[-1].partition(b"\0")[0], re.I)

        assert {name: read_by_ssh(home.config, name)[1] for name in seen} == seen
        ended, resolved, _ = read_by_ssh(home.config, "fast-ai")
        if was_good or after != before:
            assert ended == 0
            assert home.our_line in after
        if not told:
            assert f"\nhostname {HERE}\nport 2222\n".encode() in resolved
            assert b"\nhostkeyalias i-0123456789abcdef0\n" in resolved
        for line in re.findall(r", line (\d+), has another address", "\n".join(told)):
            assert b"hostname" in after.split(b"\n")[int(line) - 1].lower().replace(b'"', b"")
        event(f"was good: {was_good}, address renewed: {number is not None}, told: {len(told)}")

        written = home.config.stat()
        home.book.bring_in(machine_at(HERE))
        assert (home.config.stat().st_mtime_ns, home.config.stat().st_ino) == (written.st_mtime_ns, written.st_ino)
        home.book.bring_in(machine_at(ELSEWHERE))
        assert home.config.read_bytes() == after.replace(HERE.encode(), ELSEWHERE.encode())
        home.book.remove_everything()
        left = home.config.read_bytes().replace(ELSEWHERE.encode(), HERE.encode())
        without_ours = re.sub(rb"(?m)^%b\r*(\n|\Z)" % re.escape(home.our_line), b"", before)
        assert undone(without_ours, left, home.our_line)[0] == without_ours


@given(unrelated, st.sampled_from(sorted(UNSAFE)), unrelated)
def test_an_unsafe_block_is_left_alone_and_its_line_told_wherever_it_stands(
    above: bytes, kind: str, below: bytes
) -> None:
    block, number = UNSAFE[kind]
    with a_home() as home:
        above = home.has(b"# mine\n" + above + b"\nHost work\n")
        before = home.has(above + block + b"Host gpu\n" + below)
        was_good = read_by_ssh(home.config, "fast-ai")[0] == 0
        told = home.start(HERE)
        assert home.config.read_bytes() == (home.our_line + b"\n" if was_good else b"") + before
        line = above.count(b"\n") + number + was_good
        assert f"{home.config}, line {line}, has another address of fast-ai" in told[-1]


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """The machine's address among a few lines, with odd bytes put in or in the place of others."""
    some = st.lists(
        one(
            *(b"Host fast-ai\n", b"Host work\n", b"Host fast-ai work\n", b"HostName 52.1.2.4\n", b"User me\n"),
            *(b"Match host fast-ai\n", b"Match originalhost fast-ai\n", b"# x\n"),
        ),
        max_size=2,
    ).map(b"".join)
    text = draw(joined(some, st.just(b"Host fast-ai\n"), some, st.just(b"HostName 52.1.2.3\n"), some))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(text) - 1))
        odd = one(
            b" ", b"\t", b"=", b'"', b"'", b"\\", b"\r", b"\f", b"#", b",", b"\0", b"\xa0", b"\x0b", b"x", b"\n", b""
        )
        text = text[:at] + draw(odd) + text[at + draw(st.integers(0, 1)) :]
    return text


@given(garbled())
def test_what_ssh_takes_for_the_machines_own_address_is_renewed_or_told_and_no_other(text: bytes) -> None:
    with tempfile.TemporaryDirectory(prefix="gpuops-home.") as name:
        config = Path(name, "config")
        config.write_bytes(text)
        others = ("work", "nobody")
        seen = {host: resolved for host in others for ended, resolved, _ in [read_by_ssh(config, host)] if not ended}
        ended, resolved, _ = read_by_ssh(config, "fast-ai")
        own = set(re.findall(rb"\nhostname 52[^\n]*\n", resolved)) - set(
            re.findall(rb"\nhostname .*\n", seen.get("nobody", b""))
        )
        renewed = blocks.addressed(text, "fast-ai", HERE)
        told = blocks.by_hand(text, "fast-ai", HERE, read_only=False)
        event(f"taken: {ended == 0}, its own: {bool(own)}, renewed: {renewed != text}, told: {told is not None}")
        assert renewed != text or told or not own
        config.write_bytes(renewed)
        assert {host: read_by_ssh(config, host)[1] for host in seen} == seen
        if renewed != text and own:
            assert f"\nhostname {HERE}\n".encode() in read_by_ssh(config, "fast-ai")[1]
