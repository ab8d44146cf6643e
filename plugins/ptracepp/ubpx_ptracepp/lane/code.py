"""The compiled lane, by architecture: written by tools/images.py from lane.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "0ad229bdcbfa953265fe52761c92bb334d70669134c01c07d84a52f94d7ce5f0"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "=>Px#07#2H^bY_4RY;31{0{&CQ%HsXbQVQ1(nT@ANQ*V$4*&o$(zs;+000jKNR1Uq5C8zX_W%F@G4?^a1^@tIMKQogiP%Vq_YVb0"
        "iNQ#N`22L_NQ21#O@+x1h1~!E07#29oDTp1IW-;-000k#$^ZZWgFP7#000FKg}nd(0E0dJ4*&oJ4~4J*001%4Nr~#XWdHyGzYG8X"
        "07!|IfB*mhOo_@51xSq@Y!3hcOgjx-4*&pjeo2G*1ax>vi-mvy002li19S;V|G`Lu!x-z_NP~M20Ch7lz(|WVAP)clMKQoJ(uoBX"
        "5C8zb0zv=)xMctU08EV){0{&C4+Vie_zwU8fB*mhb-hfBQwU9k(sUa|F~GQG0002L1^@s6NQ*Vu4gdhUfB*mh4+Tt#$m<74$H4yo"
        "|NmQE!v"
    ),
}
