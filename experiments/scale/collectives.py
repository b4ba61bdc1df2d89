"""Traffic between the devices of a mesh, read from a compiled program."""

import math
import re

COLLECTIVES = {
    **dict.fromkeys(("all-gather", "all-to-all", "collective-permute"), "gathered"),
    **dict.fromkeys(("all-reduce", "reduce-scatter"), "reduced"),
}
"""Kind of each collective, by XLA's name: arrays are handed on as they are, or added up."""


def exchanged(program: str) -> dict[str, int]:
    """Bytes of the results of a program's collectives, {gathered, reduced}, those in a loop as often as it runs.

    A loop of which XLA does not know how often it runs counts once.

    Args:
        program: compiled, as text.
    """
    computations = dict(re.findall(r"^(?:ENTRY )?%?([\w.-]+) \([^\n]*\{\n(.*?)^\}", program, re.MULTILINE | re.DOTALL))
    totals = {"gathered": 0, "reduced": 0}
    collective = re.compile(rf" = (.*?) ({'|'.join(COLLECTIVES)})(?:-start)?\(")

    def count(name: str, rounds: int) -> None:
        for line in computations[name].splitlines():
            if loop := re.search(r" while\(.*body=%?([\w.-]+)", line):
                known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
                count(loop[1], rounds * (int(known[1]) if known else 1))
            elif found := collective.search(line):
                arrays = re.findall(r"(pred|[a-z]+\d+)\[([\d,]*)\]", found[1])
                sizes = (math.prod(map(int, filter(None, shape.split(",")))) * _bytes(kind) for kind, shape in arrays)
                totals[COLLECTIVES[found[2]]] += rounds * sum(sizes)

    (entry,) = re.findall(r"^ENTRY %?([\w.-]+)", program, re.MULTILINE)
    count(entry, 1)
    return totals


def _bytes(kind: str) -> int:
    """Bytes of an entry of an array whose type XLA calls so: pred, f32, bf16, s64."""
    return 1 if kind == "pred" else max(1, int(re.sub(r"\D", "", kind)) // 8)
