"""Bytes that a compiled program moves on one device: through main memory, and to other devices by collectives."""

import math
import re
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from e2h_jax.planning.hlo import Instruction, Module, is_collective

# Names for values that exist already, or what is counted where it is run.
_FREE = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "while", "conditional", "call", "after-all", "iota",
    "partition-id", "replica-id", "opt-barrier", "add-dependency", "custom-call", "domain",
}  # fmt: skip
_SLICES = ("dynamic-slice", "slice", "gather")


class Traffic(NamedTuple):
    """Of one device in one run."""

    bytes: float  # read from and written to main memory
    collectives: dict[str, tuple[float, float]]  # kind: how many, and bytes that the device sends in them


def measure(module: Module, loops: Sequence[int] = ()) -> Traffic:
    """What the instructions move, each as often as it runs; `loops` as in `Module.runs`."""
    total, found = 0.0, {}
    for computation, instruction, times in module.runs(loops):
        if is_collective(instruction):
            # One collective may be written several times, a part in each of several fused instructions.
            key = instruction.attribute(r"channel_id=(\d+)") or (computation, instruction.name)
            kind = instruction.opcode.removesuffix("-start")
            before = found.get(key, (kind, 0.0, 0.0))
            found[key] = max(before, (kind, times, times * sent(instruction)), key=lambda entry: entry[1])
        else:
            total += times * moved(module, computation, instruction)
    sums: dict[str, tuple[float, float]] = defaultdict(lambda: (0.0, 0.0))
    for kind, times, size in found.values():
        sums[kind] = (sums[kind][0] + times, sums[kind][1] + size)
    return Traffic(total, dict(sums))


def sent(instruction: Instruction) -> float:
    """Bytes that a device sends in a collective, by the best algorithm on a ring of the devices that take part."""
    kind, start = instruction.opcode.removesuffix("-start"), instruction.opcode.endswith("-start")
    size = sum(array.bytes for array in instruction.arrays)
    if kind == "collective-permute":
        return size / 2 if start else size  # a start's result holds what goes in, too
    members = group_size(instruction.attributes)
    if kind == "all-gather":
        return (size * members / (members + 1) if start else size) * (members - 1) / members
    if kind == "reduce-scatter":
        return (size / (members + 1) if start else size) * (members - 1)
    return size * (members - 1) / members * (2 if kind == "all-reduce" else 1)


def group_size(attributes: str) -> int:
    """Devices that take part in a collective: `replica_groups` in each of its three notations."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        axes = dict(re.findall(r"'(\w+)'=(\d+)", found[1]))
        return math.prod(int(axes[name]) for name in re.findall(r"'(\w+)'", found[2]))
    if found := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(found[1])
    if found := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return len(found[1].split(","))
    return 1


def moved(module: Module, computation: str, instruction: Instruction) -> float:
    """Bytes of main memory that an instruction reads and writes; of slices what is in the slice."""
    named = module.named(computation)
    opcode = instruction.opcode
    if opcode in _FREE or opcode.endswith("-done"):
        return 0.0
    read = lambda name: _main_memory(named[name]) if name in named else 0.0  # noqa: E731
    written = _main_memory(instruction)
    if opcode == "copy-start":
        return sum(array.bytes for array in instruction.arrays[:2] if array.in_main_memory)
    if opcode in (*_SLICES, "slice-start"):
        return 2 * written if opcode != "slice-start" else instruction.arrays[1].bytes
    if opcode == "dynamic-update-slice":
        return 2 * read(instruction.operands[1])
    if opcode != "fusion":
        return written + sum(map(read, instruction.operands))
    body = [i for called in instruction.called for i in module.computations.get(called, ())]
    updates = [i for i in body if i.opcode == "dynamic-update-slice"]
    sizes = {i.name: sum(array.bytes for array in i.arrays) for i in body}
    if updates:  # in place: what is written is the slice
        written = min(written, sum(sizes[i.operands[1]] for i in updates))
    parameters = {int(i.text): i.name for i in body if i.opcode == "parameter"}
    total = written
    for number, name in enumerate(instruction.operands):
        users = [i for i in body if parameters.get(number) in i.operands]
        whole = read(name)
        if users and all(i.opcode in _SLICES and i.operands[0] == parameters[number] for i in users):
            whole = min(whole, sum(sizes[i.name] for i in users))
        elif users and all(i in updates and i.operands[0] == parameters[number] for i in users):
            whole = 0.0
        total += whole
    return total


def _main_memory(instruction: Instruction) -> float:
    return sum(array.bytes for array in instruction.arrays if array.in_main_memory)
