"""Cycles of a compiled program, as the compiler for TPUs estimates them."""

import re
from collections import defaultdict
from typing import NamedTuple

_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_OPERATION = re.compile(r'op_name="([^"]*)"')
_WRAPPER = re.compile(r"^\w+\((.*)\)$")
OTHER = "other"
"""What belongs to no layer: the loss, the optimizer, copies."""


class Cycles(NamedTuple):
    """Estimated cycles of a program on one chip."""

    total: int
    by_layer: dict[str, int]
    """By the name of the network's layer, forward and backward together, the most expensive first."""

    def to_json(self) -> dict[str, object]:
        """Returns JSON values."""
        return self._asdict()


def estimated_cycles(program: str, layers: set[str]) -> Cycles:
    """Sums the cycles that the compiler expects for each operation.

    It is an estimate: it counts neither overlap with transfers nor the time between operations.

    Args:
      program: text of the compiled module.
      layers: names of the network's layers.

    Returns:
      The cycles; zero in total for backends whose compiler does not estimate them.

    Example:
      >>> line = 'fusion(%a), metadata={op_name="jit(step)/jvp(unet)/conv1/add"}, {"estimated_cycles":"70"}'
      >>> estimated_cycles(line, {"conv1"})
      Cycles(total=70, by_layer={'conv1': 70})
    """
    by_layer: dict[str, int] = defaultdict(int)
    for line in program.splitlines():
        cycles = sum(map(int, _CYCLES.findall(line)))
        if cycles:
            by_layer[_layer_of(line, layers)] += cycles
    ordered = dict(sorted(by_layer.items(), key=lambda item: -item[1]))
    return Cycles(sum(ordered.values()), ordered)


def _layer_of(line: str, layers: set[str]) -> str:
    operation = _OPERATION.search(line)
    for scope in reversed(operation[1].split("/")) if operation else ():
        while (wrapped := _WRAPPER.match(scope)) is not None:
            scope = wrapped[1]
        if scope in layers:
            return scope
    return OTHER
