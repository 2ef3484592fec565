"""The pages that blemish writes: templates beside this file, which run and load nothing."""

from __future__ import annotations

import jinja2


def environment() -> jinja2.Environment:
    """For the templates in this folder: what is filled in is text; a missing name is an error."""
    return jinja2.Environment(
        loader=jinja2.PackageLoader("blemish.report", package_path="."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
