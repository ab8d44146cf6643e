"""What the entry point names."""

from ubpx.hookspecs import hookimpl


class PtraceppPlugin:
    """Offers the ptrace tracer to every session."""

    @hookimpl
    def ubpx_open_tracer(self) -> object:
        """A new tracer; python-ptrace is loaded only now."""
        from ubpx_ptracepp.tracer import PtraceTracer

        return PtraceTracer()
