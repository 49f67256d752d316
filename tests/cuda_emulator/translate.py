"""CUDA C++ to C++ for the emulator: `asm` statements and shared memory become calls."""

import itertools
import re

_SHARED = re.compile(r"(?<!extern )__shared__ (?:__align__\(\d+\) )?([\w:<>, ]+?) (\w+)((?:\[[^;]*\])?);")
_DYNAMIC = re.compile(r"extern __shared__ (?:__align__\(\d+\) )?(\w+) (\w+)\[\];")
_STRING = re.compile(r'"((?:[^"\\]|\\.)*)"')
_PRODUCT = re.compile(r"#define BITLAB_PRODUCT\((.*?)\).*?\n(?=#define)", re.DOTALL)


def translate(source: str) -> str:
    """The same program, for the headers of the emulator."""
    source = _PRODUCT.sub(
        r"#define BITLAB_PRODUCT(\1) emulator::multiply_async<Value, kColumns>(sums, codes, columns)\n", source
    )
    source = _DYNAMIC.sub(r"\1* \2 = static_cast<\1*>(emulator::dynamic_shared());", source)
    numbers = itertools.count()
    source = _SHARED.sub(lambda match: _static_variable(*match.groups(), next(numbers)), source)
    return _translate_asm(source)


def _static_variable(type_name: str, name: str, dimensions: str, number: int) -> str:
    of_type = f"Shared_{name}"
    return (
        f"typedef {type_name} {of_type}{dimensions}; auto& {name} = "
        f"*static_cast<{of_type}*>(emulator::static_shared({number}, sizeof({of_type})));"
    )


def _translate_asm(source: str) -> str:
    pieces, end = [], 0
    for match in re.finditer(r"\basm(?: volatile)?\(", source):
        pieces.append(source[end : match.start()])
        sections, end = _sections(source, match.end())
        text = "".join(_STRING.findall(sections[0]))
        operands = [operand for section in sections[1:3] for operand in _operands(section)]
        pieces.append(f'emulator::Ptx<"{text}">::run({", ".join(operands)})')
    return "".join([*pieces, source[end:]])


def _sections(source: str, begin: int) -> tuple[list[str], int]:
    """What stands between the colons of an `asm` statement whose parenthesis opens before `begin`, and its end."""
    sections, depth, start, at = [], 1, begin, begin
    while depth > 0:
        if string := _STRING.match(source, at):
            at = string.end()
            continue
        if source.startswith("::", at) and depth > 1:
            at += 2
            continue
        depth += {"(": 1, ")": -1}.get(source[at], 0)
        if depth == 0 or (depth == 1 and source[at] == ":"):
            sections.append(source[start:at])
            start = at + 1
        at += 1
    return sections, at


def _operands(section: str) -> list[str]:
    """The expressions of operands such as `"=r"(a), "l"(b)`."""
    operands = []
    for match in re.finditer(r'"[=+]?\w"\(', section):
        depth, at = 1, match.end()
        while depth > 0:
            depth += {"(": 1, ")": -1}.get(section[at], 0)
            at += 1
        operands.append(section[match.end() : at - 1].strip())
    return operands
