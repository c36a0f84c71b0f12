"""The text of an ssh config: our line at its top, the address in a block of the person's, and no other byte changed.

Functions from text to text. What can't be edited safely is left alone, and `by_hand` says what to write there.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""OpenSSH takes it for a part of the first keyword, and refuses the whole file."""

# As strdelim() of OpenSSH's readconf.c cuts off a keyword; where a quote isn't closed, it ignores the line.
_KEYWORD = re.compile(rb'(?P<plain>[^ \t\r"=]*)(?:"(?P<quoted>[^"]*)"[ \t\r]*|(?=[ \t\r=]|$)[ \t\r]*=?[ \t\r]*)')
# Only what its argv_split(), and strdelim() before OpenSSH 8.7, read alike: no backslash, equals sign or single quote.
_WORD = re.compile(rb'[ \t]*(?:(?P<comment>#)|(?:"(?P<quoted>[^"\\]*)"|(?P<plain>[^ \t\r\f="\'\\]+))(?=[ \t]|$))')
# In a Match without its quotes; versions differ on them, and on what "=" separates.
_HOSTS = re.compile(rb"(?<![^ \t\r=])(?:original)?host[ \t\r=]+(?P<patterns>[^ \t\r=]+)", re.I)


@dataclass(frozen=True, slots=True, kw_only=True)
class ByHand:
    """The line (from 1) in which the person has to write the address, and why we don't."""

    line: int
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Word:
    """`start` and `end` are where it stands in the file, without its quotes."""

    value: bytes
    start: int
    end: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Line:
    """`words` is None where it isn't certain how OpenSSH reads the rest. `is_plain`: no "=", and no quoted keyword."""

    number: int
    keyword: bytes
    keyword_end: int
    is_plain: bool
    rest: bytes
    words: tuple[_Word, ...] | None


@dataclass(slots=True)
class _Block:
    """A Host or Match line, and the HostName lines under it."""

    head: _Line
    addresses: list[_Line] = field(default_factory=list)


def includes(text: bytes, include: bytes) -> bool:
    return any(line.rstrip(b"\r\n") == include for line in _raw_lines(text))


def included(text: bytes, include: bytes) -> bytes:
    """With our Include line at the top: further down it would stand under the Host block above it."""
    if includes(text, include):
        return text
    newline = b"\r\n" if text.split(b"\n", 1)[0].endswith(b"\r") else b"\n"
    return include + newline + text


def without(text: bytes, include: bytes) -> bytes:
    """Without our line, wherever the person has moved it."""
    return b"".join(line for line in _raw_lines(text) if line.rstrip(b"\r\n") != include)


def addressed(text: bytes, name: str, host: str) -> bytes:
    """With `host` as the HostName of the block that is this machine's and nothing else's, where there is one."""
    blocks = _about(text, name)
    if not blocks or _obstacle(blocks):
        return text
    line = blocks[0].addresses[0]
    if not line.words:  # while it stands empty, OpenSSH refuses the whole file
        return text[: line.keyword_end] + b" " + host.encode() + text[line.keyword_end :]
    (word,) = line.words
    return text if word.value == host.encode() else text[: word.start] + host.encode() + text[word.end :]


def by_hand(text: bytes, name: str, host: str, *, read_only: bool) -> ByHand | None:
    """Where a block of the machine's has another address than `host`, and can't be edited, or not safely."""
    blocks = _about(text, name)
    if not blocks or not (reason := _obstacle(blocks) or ("the file can't be written to" if read_only else "")):
        return None
    for line in (line for block in blocks for line in block.addresses):
        if line.words is None or [word.value for word in line.words] != [host.encode()]:
            return ByHand(line=line.number, reason=reason)
    return None


def _about(text: bytes, name: str) -> list[_Block]:
    """The blocks that name this machine, not only by a pattern, and give an address."""
    return [block for block in _blocks(text) if block.addresses and _names(block.head, name.encode())]


def _obstacle(blocks: list[_Block]) -> str:
    """Why the address in these blocks is not ours to write; "" where it is."""
    head, addresses = blocks[0].head, blocks[0].addresses
    if len(blocks) > 1:
        return f"the machine is named again in line {blocks[1].head.number}"
    if head.keyword == b"match":
        return f"it stands under the Match of line {head.number}"
    if head.words is None:
        return f"what line {head.number} names isn't certain"
    if len(head.words) > 1:
        return f"line {head.number} names others too"
    if len(addresses) > 1:
        return f"there is another HostName in line {addresses[1].number}"
    if not head.is_plain or not addresses[0].is_plain:
        return "it is written with an equals sign or a quoted keyword"
    if addresses[0].words is None or len(addresses[0].words) > 1:
        return "it is not one word"
    return ""


def _names(head: _Line, name: bytes) -> bool:
    if head.keyword == b"match":
        criteria = head.rest.translate(None, b"\"'\\")
        return any(name in found["patterns"].split(b",") for found in _HOSTS.finditer(criteria))
    if head.words is None:  # quotes may stand inside a word; what an escape yields is never part of a name
        return name in head.rest.translate(None, b"\"'")
    return name in [word.value for word in head.words]


def _blocks(text: bytes) -> Iterator[_Block]:
    block: _Block | None = None
    for line in _lines(text):
        if line.keyword in {b"host", b"match"}:
            if block:
                yield block
            block = _Block(line)
        elif line.keyword == b"hostname" and block:
            block.addresses.append(line)
    if block:
        yield block


def _lines(text: bytes) -> Iterator[_Line]:
    start = 0
    for number, raw in enumerate(_raw_lines(text), start=1):
        read = raw.partition(b"\0")[0].rstrip(b" \t\r\n\f")
        found = _KEYWORD.match(read)
        if found and not found["plain"] and not found["quoted"]:  # what stands before a line is cut off first
            found = _KEYWORD.match(read, found.end())
        if found:
            yield _Line(
                number=number,
                keyword=(found["plain"] + (found["quoted"] or b"")).lower(),
                keyword_end=start + found.end("plain"),
                is_plain=not set(read[: found.end()]) & set(b'"='),
                rest=read[found.end() :],
                words=_words(read, found.end(), start),
            )
        start += len(raw)


def _words(line: bytes, position: int, start: int) -> tuple[_Word, ...] | None:
    """The words from there up to a comment; the line begins at `start` in the file."""
    words: list[_Word] = []
    while position < len(line):
        found = _WORD.match(line, position)
        if found is None:
            return None
        if found["comment"]:
            break
        group = "plain" if found["quoted"] is None else "quoted"
        words.append(_Word(value=found[group], start=start + found.start(group), end=start + found.end(group)))
        position = found.end()
    return tuple(words)


def _raw_lines(text: bytes) -> list[bytes]:
    """As OpenSSH cuts it: at each newline and nowhere else, each line with its end."""
    return re.findall(rb"[^\n]*\n|[^\n]+", text)
