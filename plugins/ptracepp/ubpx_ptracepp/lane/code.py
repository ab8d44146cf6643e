"""The compiled lane, by architecture: written by tools/images.py from lane.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "c7707cf6230c43a6fda4d7b8ea7dc3fede6382d8575bf951b2fb7348afe1fe09"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=>Px#07!#9`wsvB098nfEej9;08@1xMKRJvF~CTRHS-Su05Q@?i#^g0006jU0000F1u@A;jTI^p006u90000;i4DFF001%eLAnM2"
        "0AWQjz(|SMNQw6k1xbm)NQ3zNbmT~b$p1}+$q$810RR9<i#47P0022P_z(a94~04b004tM^AG?41rLQS0RRAlJ=PEa00a+(AOQdX"
        "G15ti>bPY9006%X0000;iIso=002yh$`1udjU8?e002xo4POrc01t!e0000<gZTsxgx~-G07#34fB*mhNI3&^2}%FKNQ1)|>(oe#"
        "Ll8)Xz;ty;|HyPTF~CTRH4_g207WstG17?z;1B=+zXC!40JvoU002yl6~_<&01pL$J;M+H0Du4h0Cl$OJ4lN?*be{zF~Bj>NR16m"
        "4*&p2i*yA5Op62oNQpE7Nipz9gTM$(3BpJ{*Z=?kb>T>b|8$i|h0=78Op8+pO@-2Q8$~g|xMctU0KWzR002mfHIEJe0J?wx000jK"
        "NQ(t|4gdg1jZptgiO5Ka6>AOv07!+>brwj+!u|jM|4b>$NQuzv2S~@j{{R2~TV2B"
    ),
}
