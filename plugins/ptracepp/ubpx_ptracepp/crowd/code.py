"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "37715d0e161a87b2e6d30f8dcc8528a608624cbf9ebd8cd7a04d6c550ed43a84"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=~w^&01qDk=>Px#06|qriTOdjWdHyGzXw7906|nmG2~T9iS<)4+eta>eI-eYF-0-bMKQoJ(oBiy4+Thr_yI|YK@doT+y6=b#7Tp}"
        "AnVphiP&3RL0myy!$DU`iTOcRMKSh4RY6o$Q!(2}f$We3002mhL?on0iF720OpR<LxJZdqB#=mnL?oC<i$o-dNjb(3jl}@~07#2O"
        "B#=ls!w-$O0RR9o_Dzd<2u+FVMKQohiE$7y(n*UkxMctU0KW_X000jKG5<-4#7K$7iF_oaNQJ<42uOo`BrpJZX)(!3i!n%zlq8S<"
        "002cXz(KkP003dQ_W%F@zX1RM0Evtwpa1{>4+Thtzz>Bp0RRAlyd<Ci0000Fge3t00E4_Fm;e9(1a%F8yd<aq000Gm0049nxB&nF"
        "07${$AW4Zq5b68?002pgIY^6iB$!1p(nT@AxIF*>0J;GH06-4~NQJ-;j@bYJ0E<K<q`3hA002nA;UP!~$VrJo5HY|_h2(S-G15uL"
        "K^Xu4|NlveQ3&a)0000=ixenHi4+G&gTM$#J=g#M0Cnt0i$o*{gZTV(2R;7%|NnIjxB&nF07${$B1s8B5J-c3BrpJY4M>YrBuIhc"
        "00961bYL;SNsBQ^jZ`G4MKQogi9{r*xB&nF0KW-B002yllq8S<002nA;3G(hL?p1dWdHyG4+Thr%Ku1%_y>0)Oo`Sp(nvYzbQp^c"
        "zX1RM07(DENQ3Tx|H(+x=ST_q>*Gm@Q5Z=7!%2gA5CC)nG22Q1#z}+0An7gs|NlsV#E=9409#!_TtQtyUO`{O"
    ),
}
