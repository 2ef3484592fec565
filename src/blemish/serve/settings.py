"""What a service is started with."""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Annotated

from blemish import config
from blemish.config import Positive, Range
from blemish.errors import ConfigError
from blemish.images import Limits

MIB = 2**20
Port = Annotated[int, Range(0, 65535)]
Pictures = Annotated[int, Range(1, 2**16)]
Bytes = Annotated[int, Range(1, 2**40)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a service listens, scores and keeps.

    Attributes:
        models: artifacts and exported files, or a folder of folders, NAME/VERSION.blemish, .onnx
            or .xml; at least one.
        address, port: where it listens; port 0 = one that is free.
        hosts: names beside IP addresses and localhost under which it may be asked.
        proxies: addresses and networks of proxies before it, whose X-Forwarded-For and
            X-Forwarded-Proto are believed.
        token_file: lines of ROLE NAME TOKEN; needed wherever the address is not of this machine.
        store_url: of PostgreSQL; None = SQLite in `store_folder`.
        store_folder: what was predicted and said of it, pictures and maps; None = nothing is kept.
        keep_pictures, keep_maps: what of each picture is kept beside its row and a thumbnail.
        keep_days, keep_gibibytes: how long and how much; None = without end.
        largest_batch: pictures that are scored at once, at most.
        longest_wait_ms: how long a picture waits for others that are on their way, at most.
        queue: pictures that may be on their way or waiting, over all models; more are refused.
        most_pictures: of one request.
        time_limit_s: from the first byte of a request to its answer.
        largest_upload: bytes of one request. largest_pixels: height × width of one picture.
        held_bytes: of all requests together that are not answered yet.
        largest_model: bytes of a model file that is uploaded.
        spare_versions: versions that are loaded beside the live ones, at most.
        engine, device, precision, threads: as of `blemish.load`.
        grace_s: how long an end waits for what was accepted.
        log_format: "json" or "text". telemetry: whether spans go to OpenTelemetry.
    """

    models: tuple[Path, ...]
    address: str = "127.0.0.1"
    port: Port = 8000
    hosts: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    token_file: Path | None = None
    store_url: str | None = None
    store_folder: Path | None = None
    keep_pictures: bool = True
    keep_maps: bool = True
    keep_days: Positive | None = None
    keep_gibibytes: Positive | None = None
    largest_batch: Annotated[int, Range(1, 1024)] = 32
    longest_wait_ms: Annotated[float, Range(0, 60_000)] = 10.0
    queue: Pictures = 256
    most_pictures: Pictures = 64
    time_limit_s: Positive = 60.0
    largest_upload: Bytes = 128 * MIB
    largest_pixels: Bytes = 100_000_000
    held_bytes: Bytes = 1024 * MIB
    largest_model: Bytes = 4096 * MIB
    spare_versions: Annotated[int, Range(1, 64)] = 2
    engine: str = "auto"
    device: str = "auto"
    precision: str = "auto"
    threads: int | None = None
    grace_s: Positive = 30.0
    log_format: str = "json"
    telemetry: bool = False

    def __post_init__(self) -> None:
        config.check(self)
        if not self.models:
            raise ConfigError("name at least one artifact, exported file or folder of models")
        if not self.is_local and self.token_file is None:
            raise ConfigError(
                f"--address {self.address}: others can reach it, so it takes tokens; write lines "
                "of ROLE NAME TOKEN into a file that only you can read, and name it: --token-file"
            )

        for proxy in self.proxies:
            try:
                ip_network(proxy)
            except ValueError as error:
                raise ConfigError(
                    f"--proxy {proxy}: is neither an IP address nor a network ({error}); name "
                    "where the proxy's requests come from, as 127.0.0.1"
                ) from error
        if self.proxies and self.token_file is None:
            raise ConfigError("--proxy: a proxy lets others in, so it takes tokens: --token-file")

    @property
    def is_local(self) -> bool:
        """Whether it can be reached from this machine alone."""
        if self.address == "localhost":
            return True
        try:
            return ip_address(self.address).is_loopback
        except ValueError:
            return False

    @property
    def new_models(self) -> Path | None:
        """Where new versions are kept: the first folder of models, else one of the store; None
        where there is neither."""
        folders = [path for path in self.models if path.is_dir()]
        if folders:
            return folders[0]
        return None if self.store_folder is None else self.store_folder / "models"

    @property
    def sources(self) -> tuple[Path, ...]:
        """Where models are: those that were named, and what the store took in."""
        new = self.new_models
        more = () if new is None or new in self.models or not _has_models(new) else (new,)
        return (*self.models, *more)

    @property
    def limits(self) -> Limits:
        """What a picture may ask for."""
        return Limits(max_bytes=self.largest_upload, max_pixels=self.largest_pixels)


def _has_models(folder: Path) -> bool:
    return any(one.is_file() for one in folder.glob("*/[!.]*"))
