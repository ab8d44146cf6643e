"""What the entry point names."""

from ubpx.core.values import Diagnosis, ProcessId
from ubpx.hookspecs import hookimpl


class PtraceppPlugin:
    """Offers the ptrace tracer to every session, and tells ``ubpx doctor`` what it would meet."""

    @hookimpl
    def ubpx_open_tracer(self) -> object:
        """A new tracer; python-ptrace is loaded only now."""
        from ubpx_ptracepp.tracer import PtraceTracer

        return PtraceTracer()

    @hookimpl
    def ubpx_diagnose(self, pid: ProcessId | None) -> Diagnosis:
        """By reading /proc alone."""
        from ubpx_ptracepp.diagnosis import diagnose

        return diagnose(pid)
