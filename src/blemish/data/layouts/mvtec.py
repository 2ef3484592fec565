"""MVTec AD, whose folders are a layout for anybody's pictures: see `folders`."""

from __future__ import annotations

from blemish.data.layouts.base import Official, counted

MVTEC = Official(
    name="mvtec",
    title="MVTec AD",
    reference="Bergmann, Fauser, Sattlegger, Steger 2019",
    source="https://www.mvtec.com/research-teaching/datasets/mvtec-ad",
    licence="CC BY-NC-SA 4.0",
    tree="""\
FOLDER/<category>/train/good/*.png
FOLDER/<category>/test/good/*.png
FOLDER/<category>/test/<defect>/*.png
FOLDER/<category>/ground_truth/<defect>/*_mask.png""",
    folders=("mvtec", "mvtec_ad", "mvtec_anomaly_detection"),
    categories=counted("""
        bottle      209  20   63
        cable       224  58   92
        capsule     219  23  109
        carpet      280  28   89
        grid        264  21   57
        hazelnut    391  40   70
        leather     245  32   92
        metal_nut   220  22   93
        pill        267  26  141
        screw       320  41  119
        tile        230  33   84
        toothbrush   60  12   30
        transistor  213  60   40
        wood        247  19   60
        zipper      240  32  119
    """),
    split="The authors', by folders.",
    masks=True,
)
