"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "40a36a48da519f3ec603c6b1fb4d2589ce2e1e9db1f9e0db617821c77442483b"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=|%tm01qDk=>Px#06|nqiTOdiWdHyGzXw79097&VQ%H&PNIBho9Z8EZMKRJvF~Bj>Oo`wR1xblP5J>;UNrS;4>)u;kL0rQ@S4oNa"
        "NxuL900031002Q&Ns0DBRY{4}K~zOC<W({4Q%HgAFa!VqNR31!ut<qSB#2Ep^bd_R0RR9@IqeUPD**riG4?UZNQ+b?h(Wps003c$"
        "bR?WbF~GR@0002L0RR91iF72uNsBQ_iAfL-1xSg*NQJ-;h1viB0E2uazyJ?~&j0`bgM1{o1a%65d?d&PfB*n=2~CN45b3o5002pg"
        "IY^CkB%DPt(nT@AxIF*>0J;GH06-4~NQJ-;j*<WX0E<K<oJor@zYG8X07!}2O^Z<oNDsQ`AxVir5V&Ok000jKNQJ<31~Jk}iBSkK"
        "z)6cSNR3n^piGTaBrr&cL?ocN0RR91MKQp?2|@q>NWtJENQp!wsJLYS000jKNQ27%NQ3wXcO^`T)-lq*0RR91NIBSa7K;u^iTg<Z"
        "!$^bffd9!!)8kAD+Uw;>iBT9x|HVmzc@O|}0x|7L|HMgy!650w{{R0-fy6Kb003KEL0myyL0&;$!v"
    ),
}
