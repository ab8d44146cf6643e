"""What architectures have in common that ubpx makes no jumps for."""

from typing import ClassVar

import attrs

from ubpx._errors import InsnRefused
from ubpx.core.ubp.plans import InsnAnalysis, TrapPatch
from ubpx.core.values import VirtAddr


@attrs.frozen
class Jumpless:
    """See Architecture; the subclass says why."""

    no_jump: ClassVar[str]
    """Why there are none."""
    jump_size: ClassVar[int] = 0

    def jump_target(self, code: bytes, address: VirtAddr) -> VirtAddr | None:  # noqa: ARG002 - the protocol's
        """None: there are no jumps."""
        return None

    def jump_targets(self, analysis: InsnAnalysis, following: bytes) -> range:  # noqa: ARG002 - the protocol's
        """Raises InsnRefused."""
        raise InsnRefused(analysis.insn.address, analysis.insn, self.no_jump)

    def jump(self, analysis: InsnAnalysis, target: VirtAddr, following: bytes) -> TrapPatch:  # noqa: ARG002
        """Raises InsnRefused."""
        raise InsnRefused(analysis.insn.address, analysis.insn, self.no_jump)
