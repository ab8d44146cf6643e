"""What lies in a traced program's own memory so that it survives our death: code, and what that must know.

``guard.c`` is the code, ``layout`` describes the memory, ``table`` keeps it true while we live, ``remains``
finds and reads it after somebody else's death.
"""
