"""The table of README.md on what was measured: some lines of the matrix in
docs/results/coverage.md; `page.py` calls it."""

from __future__ import annotations

import re

METHODS = (  # those of the matrix that README names
    *("`patchcore`", "`knn`", "`padim`", "`guided`", "`agpnet`"),
    *("`lda`, M = 1", "`lda`, M = 10", "ATAC-Net's network, M = 10"),
)
_PLACE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)


def with_measured(readme: str, page: str) -> str:
    """README with the table that the matrix makes.

    Raises: ValueError where README has no place for it, or the page no such line.
    """
    if not _PLACE.search(readme):
        raise ValueError("README.md has no place for the table (<!-- measured -->)")
    table = page[page.index("| Method | ") :].partition("\n\n")[0].splitlines()
    lines = {line.split("|")[1].strip(): line for line in table[2:]}
    if missing := [name for name in METHODS if name not in lines]:
        raise ValueError(
            f"docs/results/coverage.md has no line {missing[0]} that README.md could show"
        )
    shown = [*table[:2], *(lines[name].replace("not measured", "–") for name in METHODS)]
    return _PLACE.sub(lambda _: "\n" + "\n".join(shown) + "\n\n", readme)
