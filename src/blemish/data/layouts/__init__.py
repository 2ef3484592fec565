"""How pictures of good and bad parts lie on disk: data sets, folders and tables, recognised.

`read` lists the pictures of any; `OFFICIAL` is the table of public data sets, one file each;
`blemish.data.checking` also decodes the pictures.
"""

from blemish.data.dataset import Dataset
from blemish.data.layouts.base import Counts, Official
from blemish.data.layouts.folders import TREES
from blemish.data.layouts.official import OFFICIAL, category_paths, differences, find
from blemish.data.layouts.recognition import read

__all__ = [
    "OFFICIAL",
    "TREES",
    "Counts",
    "Dataset",
    "Official",
    "category_paths",
    "differences",
    "find",
    "read",
]
