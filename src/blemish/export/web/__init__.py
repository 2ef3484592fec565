"""A folder with a web page that scores pictures by an exported detector, in the browser alone."""

from blemish.export.web.page import write_page

__all__ = ["write_page"]
