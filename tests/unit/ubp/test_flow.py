"""Where control goes from each instruction, and what it uses beside the code."""

import pytest

from ubpx.core.ubp import Flow, architecture
from ubpx.core.values import VirtAddr

AT = VirtAddr(0x1000)


def flow_of(code: str, processor: str = "x86_64") -> Flow:
    raw = bytes.fromhex(code)
    found = next(architecture(processor).flow(raw, AT))
    assert found[:2] == (AT, AT + len(raw))
    return found


@pytest.mark.parametrize(
    ("code", "target", "falls_through", "calls"),
    [
        ("90", None, True, False),
        ("eb10", 0x1012, False, False),
        ("ebfe", 0x1000, False, False),
        ("e900000000", 0x1005, False, False),
        ("7401", 0x1003, True, False),
        ("0f84f0ffffff", 0xFF6, True, False),
        ("e200", 0x1002, True, False),
        ("e310", 0x1012, True, False),
        ("e801000000", 0x1006, True, True),
        ("66 48 e801000000", 0x1008, True, True),
        ("ffd0", None, True, True),
        ("41ffd3", None, True, True),
        ("ffe0", None, False, False),
        ("3effe0", None, False, False),
        ("ff28", None, False, False),
        ("ff18", None, True, True),
        ("48ff18", None, True, True),
        ("c3", None, False, False),
        ("f3c3", None, False, False),
        ("c20800", None, False, False),
        ("cb", None, False, False),
        ("cf", None, False, False),
        ("48cf", None, False, False),
        ("f4", None, False, False),
        ("0f0b", None, False, False),
        ("0fb9c0", None, False, False),
        ("f30f01ec", None, False, False),
        ("f30f01ea", None, True, False),
        ("0f01ee", None, True, False),
        ("0faa", None, False, False),
        ("cc", None, True, False),
        ("0f05", None, True, False),
        ("c7f810000000", 0x1016, True, False),
        ("ff00", None, True, False),
        ("c70000000000", None, True, False),
        ("c5f877", None, True, False),
        ("62f17c481000", None, True, False),
    ],
)
def test_where_control_goes(code: str, target: int | None, falls_through: bool, calls: bool) -> None:
    found = flow_of(code)
    assert (found.target, found.falls_through, found.calls) == (target, falls_through, calls)


@pytest.mark.parametrize(
    ("code", "operand", "touches"),
    [
        ("8b0510000000", 0x1016, True),
        ("488d0510000000", 0x1017, False),
        ("803d0000000090", 0x1007, True),
        ("ff2510000000", 0x1016, True),
        ("f00fb10df8ffffff", 0x1000, True),
        ("c5f96f0510000000", 0x1018, True),
        ("62f1fe486f0510000000", 0x101A, True),
        ("0f1f0510000000", None, False),
        ("8b4010", None, False),
        ("8b0425 10000000", 0x10, True),
        ("ff24c5 00204000", 0x402000, True),
        ("8b04c5 00000080", 0xFFFFFFFF80000000, True),
        ("64488b042528000000", None, False),
        ("658b0510000000", None, False),
        ("8b8410 10000000", None, False),
        ("e805000000", None, False),
        ("b805000000", None, False),
        ("0f2005", None, False),
        ("0f2304", None, False),
        ("0f2204", None, False),
    ],
)
def test_what_is_used_beside_the_code(code: str, operand: int | None, touches: bool) -> None:
    found = flow_of(code)
    assert (found.operand, found.touches) == (operand, touches)


@pytest.mark.parametrize(
    ("code", "target", "operand", "touches"),
    [
        ("40", None, None, False),
        ("48", None, None, False),
        ("e8fbffffff", 0x1000, None, False),
        ("e8f0efffff", 0xFFFFFFF5, None, False),
        ("8b0510000000", None, 0x10, True),
        ("a110000000", None, 0x10, True),
        ("66a310000000", None, 0x10, True),
        ("65a114000000", None, None, False),
        ("ff24850020c008", None, 0x8C02000, True),
        ("8d0510000000", None, 0x10, False),
        ("67a11000", None, None, False),
        ("a80f", None, None, False),
        ("2ef3a210000000", None, 0x10, True),
        ("0f2005", None, None, False),
        ("0f2104", None, None, False),
    ],
)
def test_32_bit_code_is_followed_too(code: str, target: int | None, operand: int | None, touches: bool) -> None:
    found = flow_of(code, "i386")
    assert (found.target, found.operand, found.touches) == (target, operand, touches)


@pytest.mark.parametrize("code", ["9a000000000700", "ff1d00100000"])
def test_a_far_call_is_a_call(code: str) -> None:
    """Invariant: it is taken to return, wherever its target is written."""
    found = flow_of(code, "i386")
    assert (found.target, found.falls_through, found.calls) == (None, True, True)


def test_prefixes_that_a_branch_may_skip_are_counted() -> None:
    assert flow_of("f00fb10e").prefixes == 1
    assert flow_of("f2f00fb10e").prefixes == 2
    assert flow_of("480fb10e").prefixes == 0
    assert flow_of("6690").prefixes == 1


@pytest.mark.parametrize("end", ["06", "66e900000000", "48", ""])
def test_it_ends_where_an_instruction_or_its_length_is_unknown(end: str) -> None:
    code = bytes.fromhex("90 55" + end)
    assert [flow.start - AT for flow in architecture("x86_64").flow(code, AT)] == [0, 1]
