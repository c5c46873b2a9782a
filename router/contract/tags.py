"""The hash tags of partitions: which keys are in one slot of a cluster.

A deployment has one of two sets of tags for its whole life, as its field `partitions` says (`store/deployment.py`).
`NUMBERED`, of deployments made by earlier releases: `c12`, `u200`, `f7`. The slots of these tags follow no order,
so of 48 equal ranges of slots one has twice as many partitions as the mean.
`SPREAD`, of new deployments: the same names with an ending that gives partition p of users the slot 64p + 16, of files
64p + 32, and of conversations 64p + 48. So equal ranges of slots have equally many partitions, and no slot has two.

The endings below are part of the format: if one were changed, all data of its partition would be lost.
"""

from __future__ import annotations

from typing import Final

COUNT: Final = 256  # of the partitions of each family
FAMILIES: Final = ("c", "u", "f")  # conversations, users, files

NUMBERED: Final = "256"
SPREAD: Final = "256 spread"

_ENDINGS: Final = {
    "c": (
        "fly 4m3 act fhn h6k 2z1 gtv 514 5av x4 4j9 fks 1fb 6mx 293 uw cmq dfk gcv hat b30 02z 06m jz7 0xk 77y 73n "
        "08t 1z7 k6m 584 o0f hic 2a1 65z 1zh f3q 4v3 j4n 0x4 cmu dfo 9a0 6c2 4h b5e b1r xt enj bep 7z njc 1nj 6ep "
        "2u3 h9i 6ki 9ik 2en 5nt jrh e4b mt 7u7 4ml 3fv 3ba ij3 5o0 gnz dck chq 53i 28s 6l8 dmr fj3 4ky 7nd 8lf "
        "23x 58b q45 u6 ph2 3kh nl7 4de i7o f5m m1d 796 hy7 25m zp lit de 9u3 2y6 h5l 0ye 76w 7vh 09z 78n 03t 07c "
        "7xq c0b 980 2x1 h4k kac 1i1 5yr 2rh 889 b0k a5v 3p4 09i 72s 76d 0yv 6jc 1ay 1en 6nt 0a7 jie aml ffv 1kg "
        "kc5 246 hxl 6nd 9lf gj3 07 5d 5ms 5id yx hdb o0 gbw ybe 4ev 3nl 8je 7hg aww 325 je6 0md oim hbw cnr 1o8 "
        "kih dkj 9l5 6n7 802 720 j5o 0y5 8dg 7fe 4kt 00es 9n7 6l5 vt6 53d cw 1mv 2hk 5cq cmn dft 1h3 ciy dhm ccw "
        "6m0 9o2 8iy jh3 4fj 3mp ei 3je bpv 054 22u 59o 6xz 17h nc5 4kg 4op 3dj 53w 28m 2xr 5sh 5cb 2hx 1ei 6ns "
        "4i2 fhx 76c 0yq 3l1 idc 7b6 mjd 22p 59j 5yu 26g d5n k7l 603 ho 0yj 76x a19 30s ekk jii 3zb 45p 621 903 "
        "g6f h4d 3hu 4co 4gx 3lb h87 20e 24r yz8 hlb 2d0 dcq chk j9 fd0 bts 011"
    ),
    "u": (
        "d0o k2m 652 970 7i5 8k7 0f8 bgr zy 06z d1i k3k 47b 3xp 7h3 8j1 fxy 4y3 b2v 0w4 gb0 5cz 5gm 2lw 5mc 2fy "
        "2bn 5it aeo fnu 0i4 jaf 823 701 3dz ae0 cbq dik glv hnt n5m 4y7 a3x 322 hfg 2n5 oij 5a8 5q2 g4p 131 cvs "
        "aq2 34p bjk 8b9 z2 41s 74n 86l gnx 5o2 hhm gjo 1xd 67v 63a 91c 0z8 j6b a2k de 0bi 7is 3y0 axz 61c 93a g54 "
        "5pv 7bx 0ib 0mu 7fo 11r c08 6zw 15e dow cdm qkl 2h6 0ow 7dm n3n a1l 3b9 acs bfn emt 0br 7ih jn7 0fe 7gq "
        "0lk 8ad 7cf kfe 1n7 giv hkt c7d dxv 5be cp edn bot aji fas 0fv 7ml jj3 0ba 1j 1zn 93i 61k 870 752 a2s 339 "
        "14x c52 gay qhs 6us 93y vs4 54f 29v 52l 5rs 2yi 585 o0g 278 q4b a09 31s 0xj 77x 4f0 y3 79a 0vs 2q2 qrh "
        "c1m l3o 6q7 9s5 d0b kvh 0f5 jng 7i8 ehr 0vh 79z 44k lz 180 c9z 2ga ho3 69s 12i 27t 5xf c2q 1w3 dyt c6f "
        "9p2 668 k1g 195 86f 74d 49u 32o 4zh 35z 7a1 8c3 2mj 5fp 6cm 1hw f52 44x 40o w35 5lh 2gr 2ce hk7 5xu 27g "
        "93n 61l axu f7g jj4 0bf n0f 484 b7y 063 2mo 5fu 5bb 2ix 9i9 cak kld 1d6 8ke 7ig 4dv 3ol 2p 7q6 3au 4jo "
        "knf 1f4 g5 5h3 37j 4xx 48g 3wu 82 2oz 2km qh7 505 guw 1r6 c7t a05 3uw 7e4 8g6"
    ),
    "f": (
        "8i6 7k4 bes 0d9 c9t d2n 951 673 6gq 1lk b5d ezv 23o 58u dfn cmt ns 296 953 671 4lm 3gw fi0 4hz 3in 4bt "
        "4fc 3my 2k2 qhh 6m9 dls c5v 1p4 qh7 2km 8e4 7g6 iac 3i1 huh 292 g7u 5r7 fkr 4j8 img 3e5 317 atu 7s4 8q6 "
        "g17 5tu 1d6 kld 5zl 2qv 10c 9s aju fao fex 4d2 78a 0ws 07l s46 c0m l2o g6f h4d 6fd 9df 595 o1g 05n jy4 "
        "a19 30s 1fu 6mo 6ix 1bb 7qw 0zm 83j 71h bkz 0j0 fmq afk 6kz 9ix h7c g5a 5f4 onf 1h3 ciy yu 6gf 6cq 5i kj7 "
        "ci 1fr 6mh bas eji fgx 4f2 7w2 818 4lk 3gq lcx caz 5n7 ofe 2a 6cb 6gu 1lo s32 00h 0pw b55 l3n c1l m4 g7g "
        "83n 71l fow adm jx5 04o 31r a08 37x 4xj 48u 33o 4r3 f7q 396 i1d 54g vs5 12l 69v hkv git 67o 95m f1d z8 "
        "753 871 b1a 893 0p4 b5v dbk ciq 6g6 9e4 1xf 67t 0501 2uw 0r6 b7t 3io oq 7su 0xo 39z 4vh bxw e7e 8t2 728 "
        "m0d 786 b6q 0s3 11p ct2 5ss 2xi 50n v34 w3 dnu 3cd ik6 7mc 0fy 21l q26 5zi 2qs 4bf y4 3mk 4fq 42s 39i 04x "
        "b52 q0c 239 6gr 1lh g7p 5r2 c9w d2m l4 ik3 4ll 3gv 8g7 7e5 bkr 0j8 cl 6gi 5jx 2ab 992 cuh ol3 5da us ebj "
        "fgw alm 29d 5vv 56i oz3 4jn 3at 3ec 4ny 4z3 n6i 080 b9z 54k ox1 xc 9i8"
    ),
}

TAGS: Final[dict[str, dict[str, tuple[str, ...]]]] = {
    NUMBERED: {family: tuple(f"{{{family}{part}}}" for part in range(COUNT)) for family in FAMILIES},
    SPREAD: {
        family: tuple(f"{{{family}{part}.{ending}}}" for part, ending in enumerate(_ENDINGS[family].split()))
        for family in FAMILIES
    },
}  # by the field `partitions`, then by family
