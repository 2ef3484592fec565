"""Words for people: what may be printed, numbers and lists in sentences."""

from __future__ import annotations

from collections.abc import Iterable


def duration(seconds: float) -> str:
    """A time as exact as one wants to know it.

    Example:
        >>> duration(40), duration(240), duration(7500)
        ('40 s', '4 min', '2 h 5 min')
    """
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def printable(text: str, keep: str = "") -> str:
    """The text with everything unprintable escaped, save for the signs in `keep`.

    Example:
        >>> printable("a\\x1b[2Jb\\n", keep="\\n")
        'a\\\\x1b[2Jb\\n'
    """
    return "".join(
        sign
        if sign.isprintable() or sign in keep
        else sign.encode("unicode_escape").decode("ascii")
        for sign in text
    )


def pluralize(number: int, one: str, many: str = "") -> str:
    """The number with its noun; `many` where the plural is not `one` with an s.

    Example:
        >>> pluralize(1, "picture"), pluralize(3, "category", "categories")
        ('1 picture', '3 categories')
    """
    return f"{number} {one}" if number == 1 else f"{number} {many or one + 's'}"


def counted(number: int, one: str, many: str = "") -> str:
    """The same with the digits of large numbers in groups of three.

    Example:
        >>> counted(1, "step"), counted(1200, "step")
        ('1 step', '1,200 steps')
    """
    return pluralize(number, one, many).replace(f"{number}", f"{number:,}", 1)


def there_are(number: int, one: str = "", many: str = "") -> str:
    """How many there are, with the noun where one is given.

    Example:
        >>> there_are(1), there_are(0, "picture")
        ('there is 1', 'there are 0 pictures')
    """
    what = pluralize(number, one, many) if one else f"{number}"
    return f"there {'is' if number == 1 else 'are'} {what}"


def listed(items: Iterable[object]) -> str:
    """The first three of them.

    Example:
        >>> listed("abcd")
        'a, b, c, …'
    """
    names = [str(item) for item in items]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "")
