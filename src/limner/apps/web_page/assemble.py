"""WebAssembly text to bytes: as much of the language as `matmul.wat` uses.

The page needs the bytes, and a repository should have the text: so it is translated on export. The
format is that of the WebAssembly specification, chapters 5 (binary) and 6 (text): sections of
types, imports, functions, exports, and code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import groupby

TYPES = {"i32": 0x7F, "v128": 0x7B}
OPCODES = {
    "br_if": b"\x0d",
    "local.get": b"\x20",
    "local.set": b"\x21",
    "i32.const": b"\x41",
    "i32.lt_u": b"\x49",
    "i32.add": b"\x6a",
    "i32.sub": b"\x6b",
    "i32.mul": b"\x6c",
    "i32.shl": b"\x74",
    "v128.load": b"\xfd\x00",
    "v128.load32_splat": b"\xfd\x09",
    "v128.store": b"\xfd\x0b",
    "v128.const": b"\xfd\x0c",
    "f32x4.add": b"\xfd\xe4\x01",
    "f32x4.mul": b"\xfd\xe6\x01",
}
ALIGNMENT = {"v128.load": 4, "v128.load32_splat": 2, "v128.store": 4}
"""Of what is loaded and stored, as a power of two."""
LOOP, NOTHING, END = 0x03, 0x40, 0x0B
FUNCTION, MEMORY = 0x60, 0x02
TOKEN = re.compile(r'\(|\)|"[^"]*"|[^\s()";]+')
COMMENT = re.compile(r";;.*")


def assemble(text: str) -> bytes:
    """The bytes of a module with one imported memory and one exported function.

    Raises:
        ValueError: the text has something else.
    """
    tree = parse(text)
    if tree[0] != "module" or len(tree) != 3:
        raise ValueError("a module with an import and a function is expected")
    _, imported, function = tree
    _, home, name, memory = imported
    params, results = _declared(function, "param"), _declared(function, "local")
    names = {name: number for number, (name, _) in enumerate([*params, *results])}
    runs = [(len(list(run)), kind) for kind, run in groupby(kind for _, kind in results)]
    declared = b"".join(unsigned(count) + bytes([TYPES[kind]]) for count, kind in runs)
    body = [node for node in function[1:] if node[0] not in ("export", "param", "local")]
    code = unsigned(len(runs)) + declared + _code(body, names, []) + bytes([END])
    (exported,) = (node[1] for node in function if node[0] == "export")
    signature = bytes([FUNCTION]) + vector(bytes([TYPES[kind]]) for _, kind in params) + b"\0"
    least = bytes([MEMORY, 0]) + unsigned(int(memory[1]))
    sections = {
        1: [signature],
        2: [_text(home) + _text(name) + least],
        3: [b"\0"],
        7: [_text(exported) + b"\0\0"],
        10: [unsigned(len(code)) + code],
    }
    parts = (bytes([kind]) + _sized(vector(items)) for kind, items in sections.items())
    return b"\0asm\x01\0\0\0" + b"".join(parts)


def parse(text: str) -> list:
    """The S-expression of a text, as lists of lists and words."""
    stack: list[list] = [[]]
    for token in TOKEN.findall(COMMENT.sub("", text)):
        if token == "(":
            stack.append([])
        elif token == ")":
            done = stack.pop()
            stack[-1].append(done)
        else:
            stack[-1].append(token)
    if len(stack) != 1 or len(stack[0]) != 1:
        raise ValueError("the parentheses do not match")
    return stack[0][0]


def _declared(function: list, kind: str) -> list[tuple[str, str]]:
    """(name, type) of its parameters or local variables."""
    return [(node[1], node[2]) for node in function if node[0] == kind]


def _code(nodes: list, names: dict[str, int], loops: list[str]) -> bytes:
    return b"".join(_instruction(node, names, loops) for node in nodes)


def _instruction(node: list, names: dict[str, int], loops: list[str]) -> bytes:
    """An instruction after those that compute its operands.

    Args:
        names: numbers of the parameters and local variables.
        loops: names of the loops around it, the innermost last.
    """
    name, *rest = node
    if name == "loop":
        inside = _code(rest[1:], names, [*loops, rest[0]])
        return bytes([LOOP, NOTHING]) + inside + bytes([END])
    if name not in OPCODES:
        raise ValueError(f"{name} is not known; add it to OPCODES")
    words = [part for part in rest if isinstance(part, str)]
    operands = [part for part in rest if not isinstance(part, str)]
    return _code(operands, names, loops) + OPCODES[name] + _immediate(name, words, names, loops)


def _immediate(name: str, words: list[str], names: dict[str, int], loops: list[str]) -> bytes:
    """What stands behind an opcode."""
    if name in ALIGNMENT:
        offset = int(words[0].removeprefix("offset=")) if words else 0
        return unsigned(ALIGNMENT[name]) + unsigned(offset)
    if name.startswith("local."):
        return unsigned(names[words[0]])
    if name == "br_if":
        return unsigned(loops[::-1].index(words[0]))
    if name == "i32.const":
        return signed(int(words[0]))
    if name == "v128.const":
        return b"".join(int(word).to_bytes(4, "little") for word in words[1:])
    return b""


def unsigned(value: int) -> bytes:
    """LEB128: seven bits a byte, the lowest first."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        found.append(low | (0x80 if value else 0))
        if not value:
            return bytes(found)


def signed(value: int) -> bytes:
    """LEB128 in two's complement: the last byte's bit 6 is the sign."""
    found = bytearray()
    while True:
        value, low = value >> 7, value & 0x7F
        done = value == (-1 if low & 0x40 else 0)
        found.append(low if done else low | 0x80)
        if done:
            return bytes(found)


def vector(items: Iterable[bytes]) -> bytes:
    listed = list(items)
    return unsigned(len(listed)) + b"".join(listed)


def _sized(data: bytes) -> bytes:
    return unsigned(len(data)) + data


def _text(quoted: str) -> bytes:
    return _sized(quoted.strip('"').encode())
