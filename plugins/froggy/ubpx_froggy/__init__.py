"""The broker of ubpx: one process that traces, and any number of others that are its clients."""
