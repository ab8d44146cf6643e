"""Probe specifications and ELF look-up: the plugin that answers ``ubpx_resolve_spec`` and its kin.

Nothing is imported here: ``plugin`` is found by its entry point, loads ``resolver`` at the first
question, and that loads pyelftools when the first file is read.
"""
