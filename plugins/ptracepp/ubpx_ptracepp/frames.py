"""A signal frame made by us: with it a thread comes back to its own registers by itself, even without its tracer.

The kernel takes it at ``rt_sigreturn``, as if a handler had ended there. What it says of the alternate stack is
invalid on purpose: then the kernel leaves that as it is.
"""

import ctypes
import struct
from collections.abc import Iterable
from typing import Final

from ubpx_ptracepp.abi import ORIG_RAX, RAX, RIP, RSP, X86_64, Abi
from ubpx_ptracepp.requests import PTRACE_GETREGSET, request

_R15, _R14, _R13, _R12, _RBP, _RBX, _R11, _R10, _R9, _R8 = range(10)
_RCX, _RDX, _RSI, _RDI, _CS, _EFLAGS, _SS = 11, 12, 13, 14, 17, 18, 20
_CONTEXT: Final = (_R8, _R9, _R10, _R11, _R12, _R13, _R14, _R15, _RDI, _RSI, _RBP, _RBX, _RDX, RAX, _RCX, RSP, RIP,
                   _EFLAGS)  # fmt: skip
"""The registers in the order of struct sigcontext."""
_UC_FLAGS: Final = 0b111  # UC_FP_XSTATE, UC_SIGCONTEXT_SS, UC_STRICT_RESTORE_SS
_INVALID_STACK: Final = (0, 0x7FFF_FFFF, 0)
_HEAD: Final = struct.Struct("<QQQixxxxQ18QHHHH4QQ64xQ")
FLOATS_AT: Final = 512
"""Where in the frame the state of the vector registers begins: aligned as XRSTOR needs it."""

_NT_X86_XSTATE: Final = 0x202
_LARGEST_STATE: Final = 16 << 10
_SOFTWARE_AT: Final = 464
_SOFTWARE: Final = struct.Struct("<IIQI")
_FEATURES_AT: Final = 464
"""In what the kernel gives a tracer: the features that the state has room for."""
_HEADER_AT: Final = 512
_MAGIC, _MAGIC_BEHIND = 0x4650_5853, 0x4650_5845  # FP_XSTATE_MAGIC1, 2
_PLAIN: Final = 0b111
"""x87, SSE, AVX: the features that come first, in so many bytes:"""
_PLAIN_SIZE: Final = 832
LEAST_ROOM: Final = FLOATS_AT + _PLAIN_SIZE + 4
"""Bytes that any frame needs."""
_RESTARTS: Final = frozenset(0xFFFF_FFFF_FFFF_FFFF & -code for code in (512, 513, 514, 516))
"""ERESTARTSYS and its like: the kernel would begin the call again."""
_CALL_SIZE: Final = 2


class _IoVector(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


def returning_frame(tid: int, words: Iterable[int], mask: int, abi: Abi, place: range) -> bytes | None:
    """The frame with which the stopped thread comes back with these registers and blocked signals.

    ``place``: the addresses where it may lie, from a multiple of 64. None if it does not fit, or for programs whose
    frames we cannot make.
    """
    if abi is not X86_64:
        return None
    floats = _floats(tid, len(place) - FLOATS_AT)
    if floats is None:
        return None
    back = list(words)
    if back[ORIG_RAX] >> 63 == 0 and back[RAX] in _RESTARTS:  # sigreturn does not restart a call: it is made anew
        back[RAX], back[RIP] = back[ORIG_RAX], back[RIP] - _CALL_SIZE
    context = [back[place] for place in _CONTEXT]
    segments = back[_CS] & 0xFFFF, 0, 0, back[_SS] & 0xFFFF
    head = _HEAD.pack(_UC_FLAGS, 0, *_INVALID_STACK, *context, *segments, 0, 0, 0, 0, place.start + FLOATS_AT, mask)
    return head.ljust(FLOATS_AT, b"\0") + floats


def _floats(tid: int, room: int) -> bytes | None:
    """The vector registers as a frame holds them; the later features are left out where there is no room."""
    buffer = ctypes.create_string_buffer(_LARGEST_STATE)
    vector = _IoVector(ctypes.addressof(buffer), _LARGEST_STATE)
    if not request(PTRACE_GETREGSET, tid, _NT_X86_XSTATE, ctypes.addressof(vector)):
        return None
    state = bytearray(buffer.raw[: vector.length])
    features = int.from_bytes(state[_FEATURES_AT : _FEATURES_AT + 8], "little")
    if len(state) + 4 > room:
        state, features = state[:_PLAIN_SIZE], features & _PLAIN
        in_use = int.from_bytes(state[_HEADER_AT : _HEADER_AT + 8], "little") & _PLAIN
        state[_HEADER_AT : _HEADER_AT + 8] = in_use.to_bytes(8, "little")
    if len(state) + 4 > room:
        return None
    _SOFTWARE.pack_into(state, _SOFTWARE_AT, _MAGIC, len(state) + 4, features, len(state))
    return bytes(state) + _MAGIC_BEHIND.to_bytes(4, "little")
