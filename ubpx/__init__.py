"""Shared breakpoints and probes for running Linux programs.

Many clients put handlers on one program, even at one address, and share the trap, the stop and
the out-of-line slot. Start with ``ubpx.attach(pid)`` or ``ubpx.spawn(argv)``.
"""

TYPE_CHECKING = False  # what typing.TYPE_CHECKING says, without its import
if TYPE_CHECKING:
    from ubpx._errors import (
        AddressRefused,
        AlreadyTraced,
        AmbiguousSymbol,
        BrokerGone,
        ClientQuarantined,
        DebugRegistersBusy,
        ForeignTrap,
        InsnRefused,
        InternalError,
        KernelThread,
        LeftAtExec,
        MemoryFault,
        NoBroker,
        NoSuchProcess,
        NotAnInstruction,
        NotEmulated,
        NotExecutable,
        NoTracer,
        PermissionRefused,
        PluginFailed,
        ProbepointBusy,
        PtraceFailed,
        QuotaExceeded,
        SlotsExhausted,
        SpecError,
        StaleHit,
        StrategyRefused,
        TargetGone,
        UbpxError,
        UnboundIfunc,
        UnknownModule,
        UnknownRegister,
        UnknownSymbol,
        UnreadableModule,
        UsageError,
    )
    from ubpx.core.clients import Client
    from ubpx.core.deadlines import HandlerOverran, Watchdog
    from ubpx.core.events import Verdict
    from ubpx.core.hits import Hit, Snapshot
    from ubpx.core.holds import Hold
    from ubpx.core.ports import Refusal
    from ubpx.core.probepoints import Lease, LeaseGroup, LeaseState, Probepoint
    from ubpx.core.responsiveness import Responsiveness
    from ubpx.core.ubp.plans import Strategy
    from ubpx.target import Session, Target, attach, connect, spawn

__version__ = "0.1.0"

_HOMES = {
    "Client": "ubpx.core.clients",
    "HandlerOverran": "ubpx.core.deadlines",
    "Hit": "ubpx.core.hits",
    "Hold": "ubpx.core.holds",
    "Lease": "ubpx.core.probepoints",
    "LeaseGroup": "ubpx.core.probepoints",
    "LeaseState": "ubpx.core.probepoints",
    "Probepoint": "ubpx.core.probepoints",
    "Refusal": "ubpx.core.ports",
    "Responsiveness": "ubpx.core.responsiveness",
    "Session": "ubpx.target",
    "Snapshot": "ubpx.core.hits",
    "Strategy": "ubpx.core.ubp.plans",
    "Target": "ubpx.target",
    "Verdict": "ubpx.core.events",
    "Watchdog": "ubpx.core.deadlines",
    "attach": "ubpx.target",
    "connect": "ubpx.target",
    "spawn": "ubpx.target",
}
"""Where the names are that are no errors. Each is loaded when it is first asked for (PEP 562)."""

__all__ = [
    "AddressRefused", "AlreadyTraced", "AmbiguousSymbol", "BrokerGone", "Client", "ClientQuarantined",
    "DebugRegistersBusy", "ForeignTrap", "HandlerOverran", "Hit", "Hold", "InsnRefused", "InternalError",
    "KernelThread", "Lease", "LeaseGroup", "LeaseState", "LeftAtExec", "MemoryFault", "NoBroker",
    "NoSuchProcess", "NoTracer",
    "NotAnInstruction", "NotEmulated", "NotExecutable", "PermissionRefused", "PluginFailed", "Probepoint",
    "ProbepointBusy", "PtraceFailed", "QuotaExceeded", "Refusal", "Responsiveness", "Session", "SlotsExhausted",
    "Snapshot",
    "SpecError", "StaleHit", "Strategy", "StrategyRefused", "Target", "TargetGone", "UbpxError", "UnboundIfunc",
    "UnknownModule", "UnknownRegister", "UnknownSymbol", "UnreadableModule", "UsageError", "Verdict", "Watchdog",
    "attach", "connect", "spawn",
]  # fmt: skip

if not TYPE_CHECKING:  # a checker that saw these would believe in any name

    def __getattr__(name: str) -> object:
        """A public name, loaded when it is first asked for."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        value: object = getattr(import_module(_HOMES.get(name, "ubpx._errors")), name)
        globals()[name] = value
        return value

    def __dir__() -> list[str]:
        """The public names, loaded or not."""
        return sorted({*globals(), *__all__})
