"""A folder with a web page that scores pictures by an exported detector, in the browser alone."""

from blemish.export.web.described import check_page
from blemish.export.web.page import check_place, write_page

__all__ = ["check_page", "check_place", "write_page"]
