"""The ptrace tracer of ubpx."""
