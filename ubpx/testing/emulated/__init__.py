"""Differential tests on processors that unicorn plays: an instruction in place, and by every strategy.

What differs between the processors is in one module of each; ``PROCESSORS`` names them.
"""

from collections.abc import Callable, Mapping
from typing import Final

from ubpx.testing.emulated.aarch64 import Aarch64Processor
from ubpx.testing.emulated.processor import Processor
from ubpx.testing.emulated.riscv64 import Riscv64Processor

PROCESSORS: Final[Mapping[str, Callable[[], Processor]]] = {"aarch64": Aarch64Processor, "riscv64": Riscv64Processor}
