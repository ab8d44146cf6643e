"""What can go wrong with symbols beyond the names in ``ubpx._errors``."""

from collections.abc import Sequence

from ubpx._errors import SpecError
from ubpx.symbols.names import printable


class UnreadableModule(SpecError):
    """A mapped file cannot be read, is not the one that was mapped, or is not a sound ELF file."""

    def __init__(self, path: str, reason: str) -> None:
        super().__init__(
            f"cannot read the symbols of {printable(path)}: {printable(reason)}; probe an address (0x...) instead"
        )
        self.path, self.reason = path, reason


class UnboundIfunc(SpecError):
    """The function's implementation is chosen at run time, and nothing in the process has chosen yet."""

    def __init__(self, spec: str, candidates: Sequence[str]) -> None:
        if candidates:
            remedy = f"probe an implementation: {', '.join(candidates)}"
        else:
            remedy = "let the program call it once, or probe an address (0x...)"
        super().__init__(
            f"{spec!r} has several implementations (IFUNC), and the program has not bound it to one; {remedy}"
        )
        self.spec, self.candidates = spec, tuple(candidates)
