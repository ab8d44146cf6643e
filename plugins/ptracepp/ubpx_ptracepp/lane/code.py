"""The compiled lane, by architecture: written by tools/images.py from lane.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "e64a9db4415b6a1df3ac9b559aa579aa88272644e96462775bb920f3053dead0"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=>Px#06|n$Q~wq54*&p2gFOil0000;i!B-u002pe#C07-G15gbz(|WV01yBGG15qjJ>L%i0JvoU000jKG08}c6;}}e0K4}9002md"
        "4a*Mz05SGKx&{CMVMQ^(NQu};iT4i$Nr}NogZTV(<Vb_d|44<v4~16&002mfHLDK*068@!5dZ)Wg+u`W0E0as5dZ)M4}~`Y004tM"
        "0}%iK1P_HO0RR9o(n*QxxMctU0KW_X002mdm4E;M08EL>4+Th#9eWP|08Bd#Y!3hc4}<go002pY`2-Jy>Hq)$NQ;Gl0000;IRkVF"
        "N&mq}gTo-})JTg%5J-i<bahDo$aFO^z(|WVAP)clMKQoJ(uoBP5dZ+c0zv=)xMctU08EV)^bi054+Vie@DKn1fB*mhb++p}NQ*rM"
        "5C8x%z%kNDjSYGa002mfbOiuRiv$5ki8KL8G4M!(zz9qU!bm;X0001W;Yfx5bd^Yj(sYnai&F?qh0=5zMKQp*WdHyGzXkvR07#29"
        "oDKj0x_|%x01pL7{|$x?0049nNQ*-lNQJ<39QK8g00001bPPzx!~OsN|4b>%>k~+cg@6D608EL?>jy~3!~XyO|4fPJ{}n0@002md"
        "-&<WlT>m8{4gdf"
    ),
}
