"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "c7edfe98f6f28058b11eba65df7ce484e91782ea95ab8c137f43a4f46348d9bb"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        ">CFHD01qDk>2&}A07!xCm;(R+F~CTP{zWmsNQp!wh`0d&002mhR3wN@jZ`F<NWtJEzX?JB07!{MB#^je0000F1xSO+|44)Q2X`n;"
        "iPtgqG15V}0RR91NIAxI7K;x}iNQ$!#z=$jfd9!!)8R}B%IoDwiO@)a#FzsB0K-95Ns0MEy=4FZ0KW%9002Q$MKR=6NQw1RG22Nw"
        "?0qFki!ntp(nT@AG15$l=nn-*gZKeSi9rxZgWLZ}|HMgy!656_NQu~6T|rzyUBf|FNr~4%R!NEWK~+UD?LkykG3`@GiTg-_?2rHe"
        "08Kgd4~;tk002xm{SS>Y0RR9@i%SSG$w-ScMKQogiAxZ;WdHyGzYG8X05Q@{iOLTJG4@G`#EEny3`m8*bq7g<d3XSMS~1c{i!(vG"
        "2LJ$JMKQpMR3sp{_W%F@NR3n^5WfKc000jKNQJ-;g}49!0E2uaAOH`9tpET3gM1_y1a%65d?Y9ZfB*n=61V{X002nA;2=neLlEhT"
        "0000;i#te-bR-N#G15gbz_>jC006oH002M_1xSU!ert<FBn-L%0000;!QvrE3BpK;QxHvs<a7`*z(~hK82|tO|44~L2<t*gi&0R6"
        "`uubVf%^Xa|NnImx&r_J07${&AxH_(NQpxbNrQQK0C)~bi-C{;001Qb0RRAW2uO=N==A;n|44~L7)bxcNP~M20CWN|?MeT|NQ1*5"
        ">Ae2`|44zvkN^MxTU|k1L0v&!L0`i"
    ),
}
