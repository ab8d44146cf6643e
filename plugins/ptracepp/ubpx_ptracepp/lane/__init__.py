"""The fast lane: a thread that does nothing but arrive at sites is let go on, awaited and looked at by one call.

``lane.c`` is that call, compiled to the bytes of ``code``; ``turning`` gives it memory, and does the same by
single calls where no code may be made.
"""
