"""docs/results/ and the table of README.md, from the rows in benchmarks/results.

    python benchmarks/page.py            # write them
    python benchmarks/page.py --check    # only say whether they are that; the tests do so

One page for each of `questions.QUESTIONS`, and an index. Rows are told by their form: those of
`blemish bench`, and those of each script of this folder. Of rows that measure the same thing the
newest good one counts. The same rows give the same bytes, whatever the order of the files. What is
said about the figures stands in docs/findings.md, written by hand.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from page_readme import with_measured
from questions import QUESTIONS
from questions.question import MADE, Measured, Row

from blemish.bench.results.overview import SIGNS

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGES = ROOT / "benchmarks" / "results", ROOT / "docs" / "results"
README = ROOT / "README.md"
READING = f"""\
## How to read them

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
- The first sentence of each page is computed from the rows, as its tables are.

What was chosen while looking at test pictures ([log](../log.md) says how). These figures are
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
FIRST = """\
Every figure here comes from a row in `benchmarks/results/`; each page answers one question. What
the figures mean and which aims they miss: [findings](../findings.md). How to redo the tables of the
papers: [reproduce](../reproduce.md). What files that are damaged or hostile do:
[robustness](../robustness.md)."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--check",
        action="store_true",
        help="write nothing; fail where a page is not what rows make, or is one too many",
    )
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--output", type=Path, default=PAGES, help="folder of the pages")
    options = parser.parse_args(arguments)
    texts = pages({file.name: read(file) for file in sorted(options.results.glob("*.jsonl"))})
    made = {options.output / name: text for name, text in texts.items()}
    if options.output == PAGES:
        readme = README.read_text(encoding="utf-8")
        made[README] = with_measured(readme, texts["equal.md"])
    others = sorted(set(options.output.glob("*.md")) - made.keys())
    if options.check:
        check(made, others)
        return
    options.output.mkdir(parents=True, exist_ok=True)
    for file in others:
        file.unlink()
    for file, content in made.items():
        file.write_text(content, encoding="utf-8")


def check(made: Mapping[Path, str], others: Sequence[Path]) -> None:
    """Ends the program where a file is not what it should be."""
    anew = "write it anew with python benchmarks/page.py"
    for file, content in made.items():
        if not file.exists() or file.read_text(encoding="utf-8") != content:
            sys.exit(f"{file}: is not what the rows make; {anew}")
    if others:
        sys.exit(
            f"{others[0]}: no question has this page; remove it with python benchmarks/page.py"
        )


def read(file: Path) -> list[Row]:
    rows: list[Row] = []
    for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            rows.append(json.loads(line))
        except ValueError:
            sys.exit(f"{file}, line {number}: is not a row; mend or remove it")
    return rows


def pages(files: Mapping[str, Sequence[Row]]) -> dict[str, str]:
    """Name -> content of every page. `files`: name -> rows."""
    measured = Measured(files)
    lines = [f"- [**{it.title}**]({it.name}.md) {it.answer(measured)}" for it in QUESTIONS]
    index = "\n\n".join([MADE, "# Results", FIRST, "\n".join(lines), READING]) + "\n"
    return {"index.md": index, **{f"{it.name}.md": it.page(measured) for it in QUESTIONS}}


if __name__ == "__main__":
    main()
