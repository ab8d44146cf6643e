"""Suggestions for wrong names, and names that may be shown."""

from ubpx.symbols.names import nearest_names, printable


def test_the_most_similar_name_comes_first() -> None:
    """Invariant: three names at most, by similarity; among equals the public one first."""
    names = ["write", "__write", "fwrite", "read", "pwrite64", "strlen", "write"]
    assert nearest_names("wrte", names)[0] == "write"
    assert len(nearest_names("wrte", names)) <= 3
    assert nearest_names("wrte", []) == ()


def test_three_names_are_given_where_three_are() -> None:
    """Invariant: far names fill up what near ones leave, for they show what names look like here."""
    assert nearest_names("anwser", ["answer", "main", "_start"])[0] == "answer"
    assert len(nearest_names("zzzz", ["answer", "main", "_start", "_init"])) == 3


def test_many_names_are_searched_in_bounded_time() -> None:
    """Invariant: a hundred thousand names do not hide the one that is meant."""
    names = [f"some_function_{number:x}" for number in range(100_000)] + ["PyObject_Call"]
    assert nearest_names("PyObjct_Call", names)[0] == "PyObject_Call"


def test_a_name_cannot_command_the_terminal() -> None:
    """Invariant: what is shown of the target's names is printable and short."""
    assert printable("plain") == "plain"
    assert printable("\x1b[31mred\n").isprintable()
    assert len(printable("x" * 10_000)) < 300
