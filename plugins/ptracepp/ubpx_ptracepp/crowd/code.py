"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "a0446f11f3fc6e26267850cc52e543874811ac794d30c9b2b534be7118298d29"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=~w^&01qDk=>Px#06|qriTOdjWdHyGzXw7906|nmG2~T9iS<)4+eta>eI-eYF-0-bMKQoJ(oBiy4+Thr_yI|YK@doT+y6=b#7Tp}"
        "AnVphiP&3RL0myy!$DU`iTO#1_d!-kz5oCK0096106|qriPb?=MKR=6G3`@Gf$T5@002mhL?p0Ci9{rbO*#Azjc@?~08BaU4~=I5"
        "001%eG08}aR3wN&x(5INVTp7koJBFfxc2}60KWkM004<}B*00FF-eI@5Dx`NiNi>Rzz>BM0RRAld?dgC4}=Q=004u0B)9~13W0ni"
        "$OV7^0CWjWiE$9=@c;k-NsBp1jdUcOMKRJvF~GPz0002G0RR9%4+Thtzz>ej0001sL?oO|i%|%_3;+NCNQv4>i!n$Ky67QEi9ry!"
        "WdHyG4+Thx!$^g|bQ3YsNykAL|NsC0Nr_Pi>5u>b07;8NP=omVbO$~D{r~@U21yUPX%HewgL-%Xcn?X7l8^uZ0D<BF0RRAWU@^c+"
        "i!n%zR3xBGjZ`EsNQp!wptu15002cXz`qGX002nA;3G(hL?o!VWdHyG4+Thr%Ku1%_y>0-Oo`Sp(!T)!002li*mM?)4oQjoNdLn~"
        "gYJO;$w|}WObOcS<w=QA7)bxcNrQP10CWN|?MeT{NrS;4>4*OR|44zvFa!VqTU|k1L0v&!L0`i"
    ),
}
