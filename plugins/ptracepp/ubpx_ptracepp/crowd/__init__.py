"""Many threads are asked to stop, and looked at whether they have, by one call each.

``crowd.c`` has these calls, compiled to the bytes of ``code``; ``looking`` gives them memory, and does the same by
single calls where no code may be made.
"""
