"""Pictures in: one decoder for every source, with limits.

`decoder` takes any source and gives RGB pixels; `raster`, `tiff` and `dicom` read the formats; `limits` says what a
picture may ask for, `budget` what all of them together; `pixels` is what the readers share.
"""

from blemish.images.budget import ran_out, within_memory
from blemish.images.decoder import EXTENSIONS, Picture, Source, decode, decode_mask, sniff
from blemish.images.limits import LIMITS, Limits

__all__ = [
    "EXTENSIONS",
    "LIMITS",
    "Limits",
    "Picture",
    "Source",
    "decode",
    "decode_mask",
    "ran_out",
    "sniff",
    "within_memory",
]
