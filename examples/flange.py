# %% [markdown]
# # A drawn part, from good pictures to a file for the line
#
# blemish draws a machined part with defects, learns from the good ones, and shows what it finds.
# Nobody's licence holds, and nothing is downloaded: the encoder comes with
# `pip install 'blemish[torch,offline,export]'`. A minute or two of one core;
# `examples/flange.py` is the same as plain Python.

# %%
import numpy as np
from PIL import Image

import blemish
from blemish.data.synthetic import write_synthetic
from blemish.export.exporting import export
from blemish.images import decode
from blemish.report.heatmap import contours, overlay


def in_a_row(*pictures: np.ndarray) -> Image.Image:
    return Image.fromarray(np.hstack([picture[::2, ::2] for picture in pictures]))


GOOD, SIZE, MINUTES = 40, 224, 0.15  # pictures to learn from, the encoder's input, of training

data = write_synthetic("flange", count=GOOD, defects=4).folder
kinds = ["scratch", "dent", "stain", "missing_piece", "contamination"]
in_a_row(*(decode(data / "test" / kind / "001.png").as_uint8() for kind in kinds))

# %% [markdown]
# ## Fit
#
# A memory bank of the good pictures, and a threshold that about one good picture in twenty will
# exceed: each is left out in turn for it.

# %%
detector = blemish.fit(
    "patchcore", data, backbone="focus_vits14", image_size=SIZE, precision="fp32"
)
print(f"threshold {detector.threshold.value:.3f}")

# %% [markdown]
# ## Look
#
# A score, a verdict, and a heatmap in the same unit at the picture's own size.

# %%
found = detector.predict(data / "test" / "stain" / "001.png")
picture = decode(found.source).as_uint8()
heat = overlay(picture, found.heatmap, detector.map_scale)
print(f"score {found.score:.3f}, label {found.label}, p-value {found.p_value:.3f}")
in_a_row(picture, heat, contours(picture, found.mask))

# %% [markdown]
# ## Regions
#
# What stands out, as boxes, polygons and areas: for a table, COCO, or a robot that marks the place.

# %%
for region in found.regions:
    print({name: getattr(region, name) for name in ("box", "area", "peak", "mean")})

# %% [markdown]
# ## How good is it?
#
# The labels and masks of the test pictures are used here alone, never to choose anything.

# %%
evaluated = blemish.evaluate(detector, data)
print(f"image AUROC {evaluated.image_auroc:.3f}, AUPRO {evaluated.aupro:.3f}")

# %% [markdown]
# ## Labelled defects
#
# Five known defects teach any detector what defects look like. They are left out when it is judged,
# so this figure and the one above are not of the same pictures. Good ones still set the threshold.

# %%
taught = blemish.fit(
    "lda", data, anomalies=data, anomaly_count=5, backbone="focus_vits14", image_size=SIZE
)
print(f"image AUROC {blemish.evaluate(taught, data).image_auroc:.3f}, five defects known")

# %% [markdown]
# ## Another light
#
# The same test pictures at six tenths of the brightness. `guided` can bring the features of new
# pictures back to those of training ones; its score then depends on the batch, and says so.

# %%
guided = blemish.fit(
    "guided", data, backbone="focus_vits14", image_size=SIZE, time_budget=MINUTES, seed=0
)
good = [decode(path).as_uint8() * 0.6 for path in sorted((data / "test" / "good").glob("*.png"))]
bad = [decode(path).as_uint8() * 0.6 for path in sorted((data / "test").glob("[!g]*/*.png"))]
dark = [pixels.astype(np.uint8) for pixels in (*good, *bad)]
for adapt in (None, "episodic"):
    scores = [one.score for one in guided.predict_many(dark, adapt=adapt)]
    pairs = [g < b for g in scores[: len(good)] for b in scores[len(good) :]]
    print(f"adapt={adapt}: image AUROC {np.mean(pairs):.3f} in the dark")

# %% [markdown]
# ## Export
#
# A graph for ONNX Runtime, which needs no PyTorch where it runs. It is written only if it says the
# same as the artifact, on these pictures.

# %%
artifact = detector.save("flange.blemish")
export(artifact, "flange.onnx", pictures=[data / "test" / "good" / "000.png"])
exported = blemish.load("flange.onnx").predict(data / "test" / "stain" / "001.png")
print(f"score {exported.score:.3f} by ONNX Runtime, {found.score:.3f} by PyTorch")
