"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "30537e1ddff3b712277650f8ce4e35309bf14af3155e7b1f5bfd9a1434f38a52"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=|%tm01qDk=>Px#06|nqiTOdiWdHyGzXw79097&VQ%H&PNIBho9Z8EZMKRJvF~Bj>Oo`wR1xblP5J>;UNrS;4>)u;kL0rQ@S4oNa"
        "NxuL900031002Q&Ns0DBRY{4}K~zOC<W({4Q%HgAFa!VqNR31!ut<qSB#2Ep^bd_M0RR9@IqeUPCIJ8dG4?UZNQ+b?h(Wps003c$"
        "bR?WbF~GR@0002L0RR91iF72uNsBQ_iAfL-1xSg*NQJ-;h1CE60E2uazyJ?~$^ZZWgM1{o1a%65d?d&PfB*n=2~CN45b3Z0002pg"
        "IY^CkB%DPt(nT@AxIF*>0J;GH06-4~NQJ-;j*S2S0E<K<oJor@zYG8X07!}2O^Z<oNr^!axMctU01pL7g}`(MG15tiQ3x@>NsBQ^"
        "jZ`F{OpR0|Fi43+B%rtf0000*F~GkGLI40r!QdlEi9{r*xMctU01pL7gUbI%gZKw`B}|FdG19*Q0000;IoNa-iw;SN`$+%8NQ3Tx"
        "|H(<y<4g(K>*Yy_Q5Z=7#YuyC5CC)nG3`nJ#7Tp}AnC~d|NlsV#4rQ^09#!_TtQtyUO`{O"
    ),
}
