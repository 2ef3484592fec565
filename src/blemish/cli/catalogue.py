"""What can be chosen: the methods with their settings and recipes, read from the config classes themselves."""

from __future__ import annotations

import inspect
import re
from typing import Any

from blemish import config
from blemish.methods import METHODS, MethodConfig


def describe_methods() -> list[dict[str, Any]]:
    """Name, summary, source, needs, settings (name, default, about) and recipes of every method; JSON-ready."""
    described = []
    for name, kind in METHODS.items():
        default = config.to_dict(kind.Config.best())
        meanings = _meanings(kind.Config)
        recipes = []
        for recipe, make in kind.Config.recipes().items():
            changes = {
                key: value for key, value in config.to_dict(make()).items() if value != default[key]
            }
            recipes.append({"name": recipe, "about": _first_line(make), "changes": changes})
        described.append(
            {
                "name": name,
                "summary": kind.summary,
                "source": kind.source,
                "minimum_images": kind.minimum_images,
                "settings": [
                    {"name": key, "default": value, "about": meanings.get(key, "")}
                    for key, value in default.items()
                ],
                "recipes": recipes,
            }
        )
    return described


def _meanings(kind: type[MethodConfig]) -> dict[str, str]:
    """What the docstrings of a config class and its bases say under "Attributes:", by field."""
    meanings: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        _, _, listed = inspect.cleandoc(base.__dict__.get("__doc__") or "").partition(
            "\nAttributes:\n"
        )
        for names, text in re.findall(r"^    (\w[\w, ]*): (.*(?:\n {8}.*)*)", listed, re.MULTILINE):
            meanings |= dict.fromkeys(names.split(", "), " ".join(text.split()))
    return meanings


def _first_line(function: Any) -> str:
    return (inspect.getdoc(function) or "").partition("\n")[0]
