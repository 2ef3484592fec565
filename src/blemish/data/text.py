"""Numbers and lists in the sentences about a data set."""

from __future__ import annotations

from collections.abc import Iterable


def pluralize(number: int, one: str, many: str = "") -> str:
    """The number with its noun; `many` where the plural is not `one` with an s.

    Example:
        >>> pluralize(1, "picture"), pluralize(3, "category", "categories")
        ('1 picture', '3 categories')
    """
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def listed(items: Iterable[object]) -> str:
    """The first three of them.

    Example:
        >>> listed("abcd")
        'a, b, c, …'
    """
    names = [str(item) for item in items]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
