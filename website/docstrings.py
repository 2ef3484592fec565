"""Docstrings as this project writes them, in the form that griffe's Google parser knows.

`Args: name: text. name: text.` on one line, and `a, b: text`, stay as they are written, with the
word in front in bold; `Example:` becomes a section of its own, so that its code is shown as code.
"""

from __future__ import annotations

import re
from typing import Any

from griffe import Extension

_INLINE = re.compile(r"^(Args|Attributes|Returns|Raises|Yields):[ ]+(?=\S)", re.MULTILINE)
_SEVERAL = re.compile(r"^( +\w+(?:, \w+)+)(?=: )")
_EXAMPLE = re.compile(r"^Example:\s*\n", re.MULTILINE)


class Docstrings(Extension):
    """Rewrites every docstring before it is parsed."""

    def on_object(self, *, obj: Any, **_: Any) -> None:
        if obj.docstring is not None:
            text = obj.docstring.value
            lines = []
            for line in _EXAMPLE.sub("Examples:\n", text).split("\n"):
                if _INLINE.match(line):
                    line = "\n" + _INLINE.sub(r"**\1:** ", line)
                # With a blank after the comma, the second name would be taken for a type.
                lines.append(_SEVERAL.sub(lambda found: found[1].replace(", ", ",\xa0"), line))
            obj.docstring.value = "\n".join(lines)
