"""The compiled guard, by architecture: written by tools/images.py from guard.c, not by hand."""

from base64 import b85decode
from collections.abc import Mapping
from typing import Final

SOURCE: Final = "9cbee8cc8a0224432d4b30338e71a3a152a04f1217ac6c2d2a87389d81526fd2"
"""The SHA-256 of the source that was compiled."""

IMAGES: Final[Mapping[str, bytes]] = {
    "x86_64": b85decode(
        "bz*RMAZK-9a%3Pe3IG5A!2tjOKmY&$NdN!<0000000000000000000000000000000000000000000004+Th#CATjC0JskT000jK"
        "Op6Vv9{>O`$w-Ygp#T5>NxJ|4|NsC0e*j2<`G5cb0CZ4HImvTNNQ;&bAOHYJiO?ng4*&p2|HySNNQ;IDAOHYNja(4_OgY$d9Y~81"
        "NQKgL6-kNENx|p{O(D=pIrwxDNQ1x#>)uHJ!AOI~5bLKg(nyKW!$^xYFdqN_NR1UK|Ns9nz(_gpb1z6efB*mhbSFrQiVz?G0QbTF"
        "4*&pl4@rsmOe=y2AOHYKImmJhNdLe{gTfH&%rU^jxB&nF0K-#2h;$_W#zZ9l07!-Q4~dlk002OM{>%@AivR!sNW1_4|NsC0e*j3q"
        "?g&YV@kk-_h5vagMKRJvF~GPA0002K01yBGNWTE^|NsC0e*n4%0000?A<qv5NQJ<3KkG<HjdUdcNMrv=iP}Xmz_<|r006oH0000F"
        "1xSg)NQ3wRbtQm&B>&8H9!QOJB>uP(0000F1xWwMb(-r7fIG}}28u)^{)hux!$DU;RzX!kR8><*gX|bYi%tkgi!CM&002yjs;B?}"
        "06~NK1P_Gl0ssI(jY0oGiT_E7^hk-*gZKdthqwR$08EMR=)nH}|44)V0d@$5zz>8j0ssIp(nT@SMKQp*x&QzGNP(lU00030{{R0-"
        "iPuPp)(-_tjSa&6|Nlve#6i9%0000%zv=)008Ndl00RI3O*^3oC;$L;PDzV_5GViuy#W9K07!|0C;<QfNsECPC;$MBP5(&K=%@j7"
        "Au-ZLG15gbz)XqoNQu`-iPjGVNQuWxiRMg+_(+NB4+Tj7#YltwL3PDRgTWY0In8yT=^g?A06~HIfB*mh4~2OF002mXy2t<k00R$&"
        "LID5(NQ;870000Fy5JCV5=bTg|Nj3-iGr{I008Oa0RR9^jdlM_iTCJH{r~?-iNQ#Pzz>AW0000*G15gbz_<Yc006oI00;m`jWyl@"
        "002nG$DIHF{|^OBiT6l}#fd~D1Vu6J=o9__|B3HRjXk>j|Nlsd#^}iX|Nn*Ucz8@ZEvFm+0CQSNf&G90004ARNsE^dAOHYJiP3@K"
        "{|^8FNdL)n2}%FONrT4_>(EV$rwAYb07;Eh6#q#%)N|%Zi!>xih4ysai+m&mNQqP=2uXv)2<T}2|NlsfR3r%N*)h^cWBo-j(nT@A"
        "xB~zH07!|}4+Tt#v#0<70O<h%002yh@969N|Nn)+4~6jn002RNegDi4h2{VN07!%V0e4PCF~GPD0002L1poj5Oo_@tx(EOO07#8B"
        "3;_TD>mo>l{Q-9=LAnS4002cXz_<+n001%4NR2h^0002L1poj54+ZIw0000;gZ%+^F7^e#3jhFsbO|xQNQnih3jhE}gTxp}iP}tw"
        "=0u7ATS$rMT|rzyT|r(!U;p4mg~@*gK!D`|by>Xy0000%x(EOO07WstG15qlHH!cM0JseR002md?+*n<g~@*`MKRL2x&QzGNQu`-"
        "iPjGVNr}O@CjbBd4+Thx$4rUNxat4^07!}I4+ZN7NdJqd0000;gTxqHT|rzyT|r(!U&CfD4<Cd800000W-bpOga7~l003qWA4C8E"
        "FK}{iV=r`Qa%Ev;EpugTW-o1JZ2$lO00000000000000000000000000000000000000000000000000"
    ),
    "i386": b85decode(
        "bz*RMAZK-9a%3Pe3IG5AJpup#KmY&$LjV8(000000000000000000000000000000000000000000000&47@&tpET3&4B1W1pokn"
        "!gU1z09A?QS5{Mvx&QzG0E6rtiACUxf&d@@0EtE1i-H6o004<a*fGF~Md*n|?2AR{i&gA2fC<oaVT(oFIYsD;MeG|z*mF~hhY%nD"
        "0ExnZ;{Oi-0E6-YgUSGPFpIYcAOHXX@JNY8<cme*ImUAxi&g}S28q)N!*mjf!HLrktl0=TP2hAEgT@H!+=E5v0fSZS0E5R6>yt6S"
        "G17y?99v#rUBl>-1ONbm!Nmjs09A>?iRD)@|5h>fQ-kari-7<j004<q;4#vPRpg09?2CZ}AOHY~Md*!z00000i&gA7)`|KXRp@g|"
        "iSdB(fC>3@LW__PAOHZ1m=quY0Ey9wUEG1;{|^8FgUJAO8;ecgi(TX^hzKA602`PLAOHY4(TUm{Rorq9gT?`a*8qdS5bLQi!0QFL"
        "0RR91gTx$LUSD0qRf*+SR#S<?iO`A4gX|=TMefE$?*N6#d4D|2bbAl1&<Mfm2#H15i$&OpRosb1)P>u5B#T|tG5@%I0002F01yBG"
        "x(5IN0EzyA;{fpg|IL7fz;re1K#O(QjZN<{|G2aO006oH0002ZfQiC`_yKh#fPL@Gbsvj$*o{r@xU~QP0L_3%b*t+Qi$&OgILvhg"
        "idF825QD@dTV7vX!{|o?000Go0{{S3iRD*TQ-ka*iACg#MF@+142eb5i$xHLMc|7?<cpX95C8y+M+k{U*o#HrgMHWpi*QU2ga88o"
        "0E<P~NQ3wR4~N+R004>b=w<%@|AYGhb_j*Q4}?+z004_c;4#vP(}~fE)`{1FU{wG9|Npq)0002ZfQd!ai$&y(fB*mh0EtE91pos8"
        "0EtD=i$&y%P1HMx2q*vmb#RM-5GViui%sCiMc4rV001%ei9u|OMdXWs6es`yi9v9SMc9o<|BFTBi;x^B004`C7$^V$53SJC>h{4P"
        "4@JU*-~ofk0CXO>6aWAKiSvo^iSmi}&47u+i%rzH4gmlFi&faofd56<gMHXRb+Lm*<QR)h<T*{y4~267|NrS40ssJkeb|5i000k#"
        "djS9di$&mrctitq5HZq&`vDJzMgaf->1P1|0E<Q7i$GL~!GYlb0097rP1tl0i(TL)|Ns8~i9=NB(E$JejYj{8MbPMv{Qv(6!ViS&"
        "0001sedLRE*tjPF006t3|NsBG0ssgAjgOcG004>i&47tT)Qd&X=w1B(|B2Cw!iz=J=%fAr|AT$h01t?r0001sMdUHbiA~szxBvhE"
        "0F4Cz0001qP27n^%!^Iri$%<fUD%1vJDdRkAOHZ1P23xd1_U4g0CQ7|Mc9i~+%$j*&~!(OpAaAb0EyTo{|^8FgYW@^$N+Q=gGJZ@"
        "gH_xBgU1l-w2QY0AOHXX^GiA2bLNXq1dA4l$O+JN+lxiigT@Hx5dHuE>*O)gxCQ_K0E=DJiP4GHiPz15i$&mzeb9+`OzG1A004>b"
        "=tcbh|B1qdzz>DO0001he*er5g}49!0E7DhcP5K<<hZT?006rM0001q*Nu*_1polP2mk;8&4B5Q0001k`vG<?i$&yvxC9UY004Oi"
        "G17^U01yBGi$&mxeGG|35Q|0BiA4y5#4L%}TV7vX|KNjt*Z_Y8fa3vmREu5YG5@%(0002K2mk;8iTaI;umu1By9EFM0L_4deb@kh"
        "D!AYP004>miTR2C&47tT<hT?7007N^x&;6L0ExqkP2{)^0RRBafa?Z}Md1HPOoPNMTV7vX!;1tY!;2Io!;1_g!)B0>FK}{iV=r`Q"
        "a%Ev;EpugTW-o1JZ2$lO0000000000000000000000000"
    ),
}
