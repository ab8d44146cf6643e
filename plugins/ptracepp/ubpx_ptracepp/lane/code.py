"""The compiled lane, by architecture: written by tools/images.py from lane.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "d0a45d7cbfee25e5a6190a0b59363b516ca97c8f59d489c78353b109907f6900"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=>Px#07!#9`wsvB098{+iyaCO004CzMKRJvF~CTRHS-Su05Q@?i#^g0006jU0000F1u@A;jTK4}006!B0000;i4DFF001%eLAnM2"
        "0AWQjz(|ScNQw6k1xbm)NQ3zNbmT~b$p1}+$q$8B0RR9<i#47P0022P7!d#f4~0Yl004tM6A=Ia1rLQc0RRAlJ@ya)00a+(Dggih"
        "G15ti+PGx^006%X0000;iIac;002yh$`1udjV*2u002xo4POrc01t!o0000<gZTsxgz5kQ07#32fB*mhNI69SbO}lS!AOI}AnVge"
        "i$xGfg}`)lNdL%mH8H?Qi!~At002cXz%kN^1^*BL0KWo4006jU0000?jTPn)000jKfj#07004jh004Ei>pDn_J@*d)05QNZ(nyUB"
        "Y!3hcNQ*QBOp62oNQpE7Nipz9gTM$(3BpJ{*Z=?kb>c{c|8$l}h0=79Op8?rO@-2Q8$~g|xMctU0KWzR002mfHIEJe0J?wx000jK"
        "NdFCa4gdgj5=e_h7)XV{bR71BkpKVy0dx#V$H4vn|Nl%W$m<hGiGzRu002yh$m<74$H4yo|NmQE!v"
    ),
}
