"""Pictures in: one decoder for every source, with limits.

`decoder` gives RGB pixels of what `sources` takes, anything, as `rendering` says; `windows` reads
parts of big ones, by the `pieces` of a TIFF; `raster`, `jpeg`, `tiff` (with `blocks`) and `dicom`
read the formats; `limits` says what a picture may ask for, and all of them together; `pixels` is
what the readers share.
"""

from blemish.files import EXTENSIONS
from blemish.images.decoder import Picture, decode, decode_mask
from blemish.images.limits import LIMITS, Limits, ran_out, within_memory
from blemish.images.sources import Source, sniff
from blemish.images.windows import Windows, open_windows

__all__ = [
    "EXTENSIONS",
    "LIMITS",
    "Limits",
    "Picture",
    "Source",
    "Windows",
    "decode",
    "decode_mask",
    "open_windows",
    "ran_out",
    "sniff",
    "within_memory",
]
