"""The compiled lane, by architecture: written by tools/images.py from lane.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "bb18e04a23377d19840bcd58db1f24f602e3bb3009e23a2d6063d152043afadc"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=>Px#07#2H^bY_4RY;31{0{&CQ%HsXbQVQ1(nT@ANQ*V$4*&o$(zs;+000jKNR1UC5dZ+Y_W%F@G4?^a1^@tIMKQogiP%Vq_YVb0"
        "iNQ#N`22L_NQ21#O@+x1g&+X{07#29oDTp1IW_hW000k#4FLcEgFW#O000FKg#ZBn0E0c$5C8xK4~6pp001%4Nr~#XWdHyGzYG8X"
        "07!|IfB*mhOo_@51xSq@Y!3hcOgjx-4*&oUgS`L%07--S1P_F>0000;i-mvy002li19S;V|G`Lu!x-z-NQ+YtNQKgMY)Fee5D)+W"
        "F~CTT4Tlc^07#2;1prKo1OZ5iGyzF5@JNHe2uumWNIlp9004F2NQM7&1xSU`bu%%*NQ*Vy4gdf}F~Bj>i3O?<006%NLI41`WdHyG"
        "OpO(h5C8xV1%W+{5C8yx0001Wf=r832u+33bQ?u6z_?`q006%R0000;i#3)G006px0000F1x$&^>jy~3!2bXL|65(d"
    ),
}
