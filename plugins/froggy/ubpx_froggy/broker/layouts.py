"""What the words of a hit mean, by what its program is made for."""

from collections.abc import Sequence
from functools import cache

from ubpx.core.ubp import ARCHITECTURES, architecture
from ubpx_froggy.messages import LayoutInfo


@cache
def layouts() -> Sequence[LayoutInfo]:
    """Of all architectures. No two have the same number of registers: by that a peer tells them apart."""
    described = [architecture(name) for name in ARCHITECTURES]
    return [
        LayoutInfo(architecture=each.name, registers=[name for name in each.register_names if name], pc=each.pc_name)
        for each in described
    ]


def layouts_from(name: str) -> tuple[LayoutInfo, list[LayoutInfo]]:
    """That of one architecture, and the others."""
    (its,) = (each for each in layouts() if each.architecture == name)
    return its, [each for each in layouts() if each is not its]
