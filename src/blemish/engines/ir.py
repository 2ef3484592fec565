"""What of an OpenVINO .xml has to be known before the engine opens it, without the package.

Read by expat, which the standard library brings, element by element and without a tree; a document
type declaration, with which a small file can ask for gigabytes, is refused.
"""

from __future__ import annotations

from xml.parsers import expat
from xml.sax.saxutils import quoteattr

_INFO, _NET, _NOTES = "info", "net", "rt_info"


class Document:
    """What the .xml says.

    Attributes:
        notes: the model's own notes (`rt_info`) by name.
        end: the byte before which a further note is put. has_notes: whether it has room for one, or
            needs an `rt_info` of its own around it.
    """

    def __init__(self, content: bytes) -> None:
        """Raises: ValueError for what is no XML, no network, or has a document type declaration."""
        self.notes: dict[str, str] = {}
        self.end = -1
        self.has_notes = False
        self._path: list[str] = []
        self._parser = parser = expat.ParserCreate("utf-8")  # whatever it says
        parser.StartElementHandler = self._start
        parser.EndElementHandler = self._finish
        parser.StartDoctypeDeclHandler = self._refuse
        try:
            parser.Parse(content, True)
        except expat.ExpatError as error:
            raise ValueError(f"not well-formed XML: {error}") from error

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if not self._path and name != _NET:
            raise ValueError(f"<{name}> in place of <{_NET}>")
        if self._path == [_NET, _NOTES]:
            # As this OpenVINO writes them, or as earlier ones did: the name as the element's.
            key = attributes.get("name", name) if name == _INFO else name
            if key in self.notes:
                raise ValueError(f"two notes named {key!r}")
            self.notes[key] = attributes.get("value", "")
        self._path.append(name)

    def _finish(self, name: str) -> None:
        # expat is at the "<" of the end tag; of an element that has none it is at that of the
        # element, whose end is then no place to put anything.
        if self._path == [_NET, _NOTES]:
            self.end, self.has_notes = self._parser.CurrentByteIndex, True
        elif self._path == [_NET] and not self.has_notes:
            self.end = self._parser.CurrentByteIndex
        self._path.pop()

    def _refuse(self, *_: object) -> None:
        raise ValueError("it has a document type declaration, which a network needs none of")


def with_note(content: bytes, name: str, value: str) -> bytes:
    """The .xml with one more note of the model. Raises: ValueError as `Document`."""
    document = Document(content)
    written = note(name, value)
    if not content.startswith(b"</", document.end):
        raise ValueError("an element without content")
    if not document.has_notes:
        written = b"<rt_info>" + written + b"</rt_info>"
    return content[: document.end] + written + content[document.end :]


def note(name: str, value: str) -> bytes:
    """One encoded note."""
    return f"<info name={quoteattr(name)} value={quoteattr(value)} />".encode("ascii")
