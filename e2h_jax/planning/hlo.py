"""The compiler's text of a program, taken apart: computations, instructions, and how often every one of them runs."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

_BITS = {"pred": 8, "s4": 4, "u4": 4, "bf16": 16}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(r"(?:calls|body|to_apply|true_computation|false_computation)=%([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations|called_computations)=\{([^}]*)\}")


class Array(NamedTuple):
    """An array of a shape: its bytes, and whether they lie in the chip's main memory."""

    bytes: float
    in_main_memory: bool


@dataclass(frozen=True)
class Instruction:
    """One line: `name = shape opcode(operands), attributes`."""

    name: str
    shape: str
    opcode: str
    operands: tuple[str, ...]
    text: str  # of the operands, which of a constant is its value
    attributes: str
    root: bool

    @property
    def arrays(self) -> list[Array]:
        """The arrays of the result: one, or those of a tuple."""
        return arrays(self.shape)

    @property
    def called(self) -> list[str]:
        """Computations that this one runs, conditions of loops aside."""
        branches = [name for group in _BRANCHES.findall(self.attributes) for name in _NAME.findall(group)]
        return _CALLED.findall(self.attributes) + branches

    def attribute(self, pattern: str) -> str | None:
        found = re.search(pattern, self.attributes)
        return found[1] if found else None


def arrays(shape: str) -> list[Array]:
    """The arrays in a shape's text, without the padding of tiles."""
    found = []
    for kind, sizes, layout in _ARRAY.findall(shape):
        bits = _BITS.get(kind) or int(re.search(r"\d+", kind)[0])
        bytes_ = math.prod(int(size) for size in sizes.split(",") if size) * bits / 8
        found.append(Array(bytes_, not re.search(r"S\([1-9]", layout)))
    return found


class Module:
    """A program: {name: instructions} of its computations, the entry's name among them."""

    def __init__(self, text: str):
        self.computations: dict[str, list[Instruction]] = {}
        self.entry = ""
        inside: list[Instruction] | None = None
        for line in text.splitlines():
            if inside is None:
                if line.endswith("{") and (head := re.match(r"(ENTRY )?%?([\w.\-]+) \(", line)):
                    inside = self.computations.setdefault(head[2], [])
                    self.entry = head[2] if head[1] else self.entry
            elif line == "}":
                inside = None
            elif " = " in line:
                inside.append(_parse(line))
        self._named = {name: {i.name: i for i in body} for name, body in self.computations.items()}

    def named(self, computation: str) -> dict[str, Instruction]:
        """{name: instruction} of a computation."""
        return self._named[computation]

    def runs(self, loops: Sequence[int] = ()) -> Iterator[tuple[str, Instruction, float]]:
        """(computation, instruction, how often it runs) of all instructions that are run for themselves.

        What is fused into one instruction is left out, but for the collectives in it. `loops` are the iterations of loops whose
        number is not in the text, the outermost first.
        """
        yield from self._walk(self.entry, 1.0, tuple(loops), False)

    def _walk(self, name: str, times: float, loops: tuple[int, ...], fused: bool):
        for instruction in self.computations.get(name, ()):
            if instruction.opcode == "while":
                known = self.trip_count(name, instruction)
                inner, rest = (known, loops) if known is not None else (loops[0], loops[1:]) if loops else (1, ())
                yield from self._walk(instruction.attribute(r"body=%([\w.\-]+)"), times * inner, rest, fused)
                continue
            below = fused or instruction.opcode == "fusion"
            if not fused or is_collective(instruction):
                yield name, instruction, times
            if instruction.opcode in ("fusion", "call", "conditional", "async-start", "custom-call"):
                for called in instruction.called:
                    yield from self._walk(called, times, loops, below)

    def trip_count(self, computation: str, loop: Instruction) -> int | None:
        """Iterations of a `while`: as the text says, or as its counter's start, step and limit do; None if neither does."""
        if said := loop.attribute(r'known_trip_count":\{"n":"(\d+)"'):
            return int(said)
        condition = self.named(loop.attribute(r"condition=%([\w.\-]+)"))
        body = self.named(loop.attribute(r"body=%([\w.\-]+)"))
        compare = next(i for i in condition.values() if i.root)
        if compare.opcode != "compare" or "direction=LT" not in compare.attributes:
            return None
        counter, limit = (condition[name] for name in compare.operands)
        if counter.opcode != "get-tuple-element" or limit.opcode != "constant":
            return None
        index = int(counter.attribute(r"index=(\d+)"))
        start = self._constant(computation, loop.operands[0], index)
        step = self._step(body, index)
        return max(0, -(-(int(limit.text) - start) // step))

    def _constant(self, computation: str, name: str, index: int) -> int:
        """The constant at a place of a tuple; 0, where nearly all counters start, if it cannot be seen."""
        named = self.named(computation)
        value = named.get(name)
        if value is not None and value.opcode == "tuple":
            value = named.get(value.operands[index])
        while value is not None and value.opcode in ("copy", "bitcast"):
            value = named.get(value.operands[0])
        return int(value.text) if value is not None and value.opcode == "constant" else 0

    @staticmethod
    def _step(body: dict[str, Instruction], index: int) -> int:
        """What a loop's body adds to its counter; 1 if it cannot be seen."""
        root = next(i for i in body.values() if i.root)
        new = body.get(root.operands[index]) if root.opcode == "tuple" else None
        if new is not None and new.opcode == "add":
            for operand in new.operands:
                if body[operand].opcode == "constant":
                    return max(1, int(body[operand].text))
        return 1


COLLECTIVES = ("all-gather", "reduce-scatter", "all-reduce", "all-to-all", "collective-permute")


def is_collective(instruction: Instruction) -> bool:
    """Whether it begins a collective; the "-done" of one that is asynchronous does not."""
    return instruction.opcode.removesuffix("-start") in COLLECTIVES


def _parse(line: str) -> Instruction:
    name, rest = line.strip().split(" = ", 1)
    end = _closing(rest, 0) + 1 if rest.startswith("(") else rest.index(" ")
    shape, rest = rest[:end], rest[end:].strip()
    opcode, _, rest = rest.partition("(")
    end = _closing("(" + rest, 0) - 1
    text = rest[:end]
    root = name.startswith("ROOT ")
    name = name.removeprefix("ROOT ").lstrip("%")
    return Instruction(name, shape, opcode, tuple(_NAME.findall(text)), text, rest[end + 1 :], root)


def _closing(text: str, start: int) -> int:
    """The place of the bracket that closes the one at `start`."""
    depth = 0
    for place in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[place], 0)
        if not depth:
            return place
    raise ValueError(f"a bracket is not closed in {text[:80]!r}")
