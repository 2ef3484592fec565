"""What was predicted, and what people said of it: in a database, with the pictures beside it.

`Store` is all that others use, with the dataclasses of `records`. `database` opens SQLite or
PostgreSQL and says what went wrong, `schema` has the tables, `migrations` how they came about;
`predictions`, `descriptors`, `labels`, `reviewing`, `judging`, `versions`, `jobs`, `leases` and
`media` are the parts of a `Store`, `retention` deletes what is old, `exports` writes CSV, COCO and
data sets, and `spool` keeps what could not be written yet.
"""

from blemish.lazy import handing_out

_HOMES = {
    "Store": "blemish.store.store",
    "Spool": "blemish.store.spool",
    "LeaseLost": "blemish.store.part",
    "Descriptor": "blemish.store.descriptor",
    **dict.fromkeys(
        (
            *("Draw", "Held", "Job", "Label", "OtherScore", "Promotion"),
            *("Reviewed", "Row", "Scored", "VersionRow"),
        ),
        "blemish.store.records",
    ),
}
__getattr__, __dir__ = handing_out(__name__, _HOMES)
