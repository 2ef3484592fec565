"""The tables of README.md on what was measured: those of docs/results/equal.md with fewer columns
and figures; `page.py` calls it."""

from __future__ import annotations

import re

_PLACE = re.compile(r"(?<=<!-- measured -->\n).*?(?=<!-- /measured -->)", re.DOTALL)
_TABLES = ("## From good pictures alone", "## With 10 labelled defects")
_LEFT_OUT = {"Steps", "A picture"}


def with_measured(readme: str, page: str) -> str:
    """README with the tables that the page on equal arithmetic has.

    Raises: ValueError where README has no place for them, or the page lacks one.
    """
    if not _PLACE.search(readme):
        raise ValueError("README.md has no place for the tables (<!-- measured -->)")
    made = "\n\n".join(f"{title[3:]}:\n\n{_shown(page, title)}" for title in _TABLES)
    return _PLACE.sub(lambda _: f"\n{made}\n\n", readme)


def _shown(page: str, title: str) -> str:
    """A table with image AUROC and AUPRO alone."""
    _, found, rest = page.partition(f"\n{title}\n")
    if not found:
        raise ValueError(f"docs/results/equal.md has nothing that README.md could show: {title}")
    table = rest[rest.index("| Method | ") :].partition("\n\n")[0].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table]
    columns = [at for at, name in enumerate(cells[0]) if name not in _LEFT_OUT]
    lines = [[_brief(line[at]) for at in columns] for line in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _brief(cell: str) -> str:
    """Image AUROC and AUPRO of `image AUROC / pixel AUROC / AUPRO (seeds)`; others as they are."""
    figures = cell.split(" / ")
    return f"{figures[0]} / {figures[2]}" if len(figures) == 3 else cell
