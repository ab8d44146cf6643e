"""Many threads that were asked to stop are looked at by one call.

``crowd.c`` is that call, compiled to the bytes of ``code``; ``looking`` gives it memory, and does the same by
single calls where no code may be made.
"""
