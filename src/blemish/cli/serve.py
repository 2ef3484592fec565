"""serve: a service that scores what it is sent, until it is told to stop."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from blemish.cli import console, options
from blemish.cli.options import Device, Json, Precision
from blemish.cli.status import BY_SIGNAL, WELL
from blemish.config import Range
from blemish.errors import unknown_name
from blemish.text import pluralize

if TYPE_CHECKING:
    from blemish.serve.service import Service
    from blemish.serve.settings import Settings

_MIB = 2**20
_NEEDED = ("fastapi", "uvicorn", "python_multipart", "prometheus_client", "sqlalchemy", "alembic")
_KEPT = ("pictures", "maps")
_SAME = (  # options that are called as in `Settings`
    *("address", "port", "token_file", "keep_days", "largest_batch", "queue", "telemetry"),
    *("device", "precision", "engine", "threads"),
)
_LOGS = ("auto", "json", "text")

Models = Annotated[
    list[Path],
    Argument(
        metavar="ARTIFACT|FILE|FOLDER...",
        help="Files that `blemish fit`, or `export`, has written; or a folder of models with "
        "NAME/VERSION.blemish, .onnx or .xml.",
        show_default=False,
    ),
]
Address = Annotated[
    str, Option(help="Where it listens. Any other than of this machine takes --token-file.")
]
Port = Annotated[int, Option(min=0, max=65535, help="0 = one that is free.")]
Host = Annotated[
    list[str] | None,
    Option(metavar="NAME", help="A name under which it may be asked, beside IP addresses."),
]
Proxy = Annotated[
    list[str] | None,
    Option(
        metavar="ADDRESS",
        help="Of a proxy before it, as 127.0.0.1 or 10.0.0.0/24, which is believed who asks and "
        "whether by HTTPS. Takes --token-file.",
    ),
]
TokenFile = Annotated[
    Path | None,
    Option(
        metavar="FILE",
        help="Lines of ROLE NAME TOKEN, ROLE one of predict, review, admin. Only its owner may be "
        "able to read it.",
    ),
]
StoreAt = Annotated[
    str,
    Option(
        "--store",
        metavar="FOLDER|URL|none",
        envvar="BLEMISH_STORE",
        help="What was scored and said of it: in a folder, or in PostgreSQL by its URL "
        "(postgresql://…), with pictures in --media; none = nothing is kept.",
    ),
]
Media = Annotated[
    Path, Option(metavar="FOLDER", help="Of pictures and maps, where --store is a URL.")
]
Keep = Annotated[
    str,
    Option(
        metavar="LIST",
        help="What is kept of each picture beside its row and a thumbnail: pictures, maps, both, "
        "or none.",
    ),
]
KEPT = Range(0, 1_000_000, above=True, below=True)
KeepDays = Annotated[
    float | None,
    Option(
        metavar="DAYS",
        callback=options.in_range(KEPT),
        help="How long. What is labelled stays. [default: ever]",
    ),
]
KeepGib = Annotated[
    float | None,
    Option(
        "--keep-gib",
        metavar="GIB",
        callback=options.in_range(KEPT),
        help="How much; then the oldest go. [default: no limit]",
    ),
]
LargestBatch = Annotated[int, Option(min=1, max=1024, help="Pictures that are scored at once.")]
LongestWait = Annotated[
    float,
    Option(
        metavar="MS",
        callback=options.in_range(Range(0, 60_000)),
        help="For which a picture waits for others that are on their way.",
    ),
]
Queue = Annotated[
    int, Option(min=1, max=65536, help="Pictures that may wait; more are refused (503).")
]
TimeLimit = Annotated[
    float,
    Option(
        metavar="SECONDS",
        callback=options.in_range(Range(0, 86_400, above=True)),
        help="Of a request.",
    ),
]
LargestUpload = Annotated[int, Option(metavar="MIB", min=1, max=2**16, help="Of a request.")]
LargestPicture = Annotated[
    int, Option(metavar="MEGAPIXELS", min=1, max=4096, help="Of one picture.")
]
LogFormat = Annotated[
    str, Option("--log", metavar="FORMAT", help="json, text, or auto: text on a terminal.")
]
Telemetry = Annotated[
    bool,
    Option("--telemetry", help="Spans to OpenTelemetry, as OTEL_TRACES_EXPORTER says (console)."),
]


def serve(
    models: Models,
    address: Address = "127.0.0.1",
    port: Port = 8000,
    host: Host = None,
    proxy: Proxy = None,
    token_file: TokenFile = None,
    store: StoreAt = "blemish-store",
    media: Media = Path("blemish-store"),
    keep: Keep = "pictures,maps",
    keep_days: KeepDays = None,
    keep_gib: KeepGib = None,
    largest_batch: LargestBatch = 32,
    longest_wait: LongestWait = 10.0,
    queue: Queue = 256,
    time_limit: TimeLimit = 60.0,
    largest_upload: LargestUpload = 128,
    largest_picture: LargestPicture = 100,
    log: LogFormat = "auto",
    telemetry: Telemetry = False,
    device: Device = "auto",
    precision: Precision = "auto",
    engine: options.Engine = "auto",
    threads: options.Threads = None,
    json: Json = False,
) -> int:
    """Score what is sent over HTTP, until Ctrl-C."""
    from blemish.extras import require

    require(*_NEEDED, purpose="serve")
    from blemish.serve.running import run

    settings = _settings(locals())
    services: list[Service] = []

    def begun(service: Service, url: str) -> None:
        services.append(service)
        _tell(service, url)

    number = run(settings, begun)
    answered = {str(status): count for status, count in sorted(services[0].answered.items())}
    told = f"{pluralize(sum(answered.values()), 'request')} answered"
    console.answer({"answered": answered, "signal": number}, [told], as_json=json)
    return BY_SIGNAL + number if number else WELL


def _settings(given: Mapping[str, Any]) -> Settings:
    """What the options say. Raises: ConfigError."""
    from blemish.serve.settings import Settings

    log, store, kept = given["log"], given["store"], given["keep"]
    if log not in _LOGS:
        raise unknown_name("format of --log", log, _LOGS)
    kept = options.parts("" if kept == "none" else kept)
    for name in kept:
        if name not in _KEPT:
            raise unknown_name("kind of --keep", name, _KEPT)
    is_url = "://" in store
    folder = given["media"] if is_url else Path(store)
    return Settings(
        models=tuple(given["models"]),
        hosts=tuple(given["host"] or ()),
        proxies=tuple(given["proxy"] or ()),
        store_url=store if is_url else None,
        store_folder=None if store == "none" else folder,
        keep_pictures="pictures" in kept,
        keep_maps="maps" in kept,
        keep_gibibytes=given["keep_gib"],
        longest_wait_ms=given["longest_wait"],
        time_limit_s=given["time_limit"],
        largest_upload=given["largest_upload"] * _MIB,
        largest_pixels=given["largest_picture"] * 1_000_000,
        log_format=("text" if sys.stderr.isatty() else "json") if log == "auto" else log,
        **{name: given[name] for name in _SAME},
    )


def _tell(service: Service, url: str) -> None:
    """Say what is served, and where."""
    for name in service.models.names:
        served = service.models.live(name)
        for sentence in served.detector.engine.notes:
            console.complain(f"blemish: notice: {name}: {sentence}")
    live = {name: service.models.live(name).version for name in service.models.names}
    service.log.note("serving", url=url, models=live, process=os.getpid())
