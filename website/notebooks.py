"""Notebooks of the scripts in examples/, with what they print and draw when they are run.

    python website/notebooks.py [examples/flange.py …]     # runs each in a folder of its own

A script has cells that begin with `# %%` (code) or `# %% [markdown]` (comments). The last
expression of a cell is shown if it is a picture. No Jupyter is needed, and nothing is written
unless every cell runs.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"
QUALITY = 85  # of pictures, as JPEG


def cells(script: str) -> list[tuple[str, str]]:
    """("markdown" or "code", its text), of each cell of a script."""
    found = []
    for part in re.split(r"^# %%", script, flags=re.MULTILINE)[1:]:
        head, _, body = part.partition("\n")
        body = body.strip("\n")
        if "[markdown]" in head:
            body = "\n".join(line.removeprefix("#").removeprefix(" ") for line in body.split("\n"))
            found.append(("markdown", body))
        else:
            found.append(("code", body))
    return found


def run(code: str, names: dict[str, Any]) -> tuple[str, Any]:
    """What a cell prints, and the value of its last expression, or None."""
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(tree, "cell", "exec"), names)
        shown = None
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    return said.getvalue(), shown


def notebook(script: str) -> dict[str, Any]:
    """The notebook (nbformat 4.5) of a script, run in the current folder."""
    made: list[dict[str, Any]] = []
    names: dict[str, Any] = {"__name__": "__main__"}
    for number, (kind, text) in enumerate(cells(script)):
        cell: dict[str, Any] = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}}
        cell["source"] = text.splitlines(keepends=True)
        if kind == "code":
            said, shown = run(text, names)
            cell |= {"execution_count": None, "outputs": []}
            if said:
                lines = said.splitlines(keepends=True)
                cell["outputs"].append({"output_type": "stream", "name": "stdout", "text": lines})
            if hasattr(shown, "save"):
                held = io.BytesIO()
                shown.convert("RGB").save(held, "JPEG", quality=QUALITY)
                data = {"image/jpeg": base64.b64encode(held.getvalue()).decode()}
                output = {"output_type": "display_data", "data": data, "metadata": {}}
                cell["outputs"].append(output)
        made.append(cell)
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": made, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}


def main() -> None:
    for path in map(Path, sys.argv[1:] or sorted(EXAMPLES.glob("*.py"))):
        script = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
            made = notebook(script)
        file = path.absolute().with_suffix(".ipynb")
        file.write_text(json.dumps(made, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file}: {file.stat().st_size // 1024} KiB")


if __name__ == "__main__":
    main()
