"""The compiled crowd, by architecture: written by tools/images.py from crowd.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "d31e2e0d2c10523617845b348557a157afcd62003334cd3c53d407ae32afc8d5"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=~w^&01qDk=>Px#06|qriTOdjWdHyGzXw7906|nmG2~T9iS<)4+eta>eI-eYF-0-bMKQoJ(oBiy4+Thr_yI|YK@doT+y6=b#7Tp}"
        "AnVphiP&3RL0myy!$DU`iTO#1*FjcEz5oCK0096106|qnG3`NARWa>TNP+A)1ONa?jYK54NQrbLh)9V<B#=mpL?nnwImHi+VgUdE"
        "Oga4zjadNz05SG4$w-S-B#=S62LJ$JiF72SMKQp*_W%F@zX1RM0Eu)Y$VrPaNr_1i4+Thx!$^g|4}}N;004u0B**{{g#7>j0E2ua"
        "zyx&)fqW#;1%LnmbO}v~aS-X_0000<i#bS*bR?ujG15gbz_>jC006oH002M_1xSU!501b9004_bB&1D?Q3$^b0000;iP}kvF-Q-("
        "=pjjoK@hlQ0000F1xSg*NQJ<36EV_B$3YnX|Ns9<iBSmYf&c&jNsB^IgZTV(2R;7%|NnIcNe{Yd5F$k}<Vk~icmR1`F~CWSF-VP6"
        "B&bY{R3tb^i9{r*xB&nF07WstzX?JB07${$BS?uvB(S(;0000F1xSPV2X`Y(iPF9S0000;IoNa>iwa1I_elT4NQ3Ht|H(+x=Sd0t"
        ">*Yy<%>PY^VHimN#YuyC5CC)nG3`nJ#Yuy~AnB0)|NlsV#5e>109#!_TtQtyUO`{O"
    ),
}
