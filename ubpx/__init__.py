"""Shared breakpoints and probes for running Linux programs.

Many clients put handlers on one program, even at one address, and share the trap, the stop and
the out-of-line slot. Start with ``ubpx.attach(pid)`` or ``ubpx.spawn(argv)``.
"""

from ubpx._errors import (
    AlreadyTraced,
    AmbiguousSymbol,
    ClientQuarantined,
    DebugRegistersBusy,
    ForeignTrap,
    InsnRefused,
    InternalError,
    KernelThread,
    MemoryFault,
    NoSuchProcess,
    NotAnInstruction,
    NotExecutable,
    NoTracer,
    PermissionRefused,
    PluginFailed,
    ProbepointBusy,
    PtraceFailed,
    SlotsExhausted,
    StaleHit,
    StrategyRefused,
    TargetGone,
    UbpxError,
    UnknownModule,
    UnknownSymbol,
    UsageError,
)
from ubpx.core.clients import Client
from ubpx.core.events import Verdict
from ubpx.core.hits import Hit, Snapshot
from ubpx.core.holds import Hold
from ubpx.core.ports import Refusal
from ubpx.core.probepoints import Lease, LeaseGroup, LeaseState, Probepoint
from ubpx.core.ubp.plans import Strategy
from ubpx.target import Session, Target, attach, spawn

__version__ = "0.1.0"

__all__ = [
    "AlreadyTraced", "AmbiguousSymbol", "Client", "ClientQuarantined", "DebugRegistersBusy",
    "ForeignTrap", "Hit", "Hold", "InsnRefused",
    "InternalError", "KernelThread", "Lease", "LeaseGroup", "LeaseState", "MemoryFault", "NoSuchProcess", "NoTracer",
    "NotAnInstruction", "NotExecutable", "PermissionRefused", "PluginFailed", "Probepoint", "ProbepointBusy",
    "PtraceFailed", "Refusal", "Session", "SlotsExhausted", "Snapshot", "StaleHit", "Strategy", "StrategyRefused",
    "Target", "TargetGone", "UbpxError", "UnknownModule", "UnknownSymbol", "UsageError", "Verdict", "attach", "spawn",
]  # fmt: skip
