"""Text that is safe to show."""


def printable(text: str) -> str:
    """``text`` in one line, with whatever could control a terminal written as an escape.

    Names of files, symbols and commands come from the programs that are probed, and may hold anything.
    """
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode("ascii") for each in text)
