"""What a service counts and measures, for Prometheus; in a registry of its own."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Summary, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from blemish.serve.appearance import Appearance
from blemish.types import Prediction

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
_PICTURES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_RATIOS = (0.1, 0.25, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.5, 2, 4, 8)
_MODEL = ("model", "version")
_VERDICTS = {0: "normal", 1: "anomalous", None: "none"}


class Metrics:
    """The measures of a service; each is also there by its name, for who sets it.

    Attributes: before: called, in a thread, before they are read: to set what is not counted.
    """

    media_type = CONTENT_TYPE_PLAIN_0_0_4

    def __init__(self) -> None:
        self.before: list[Callable[[], None]] = []
        own = self.registry = CollectorRegistry()
        self.requests = Counter(
            "blemish_requests", "Requests answered.", ("route", "status"), registry=own
        )
        self.request_seconds = Histogram(
            "blemish_request_seconds",
            "From a request to the end of its answer.",
            ("route",),
            registry=own,
            buckets=_SECONDS,
        )
        self.refused = Counter(
            "blemish_refused", "Requests and pictures refused.", ("kind",), registry=own
        )
        self.queue = Gauge(
            "blemish_queue_pictures", "Pictures accepted and not answered.", registry=own
        )
        self.waiting = Gauge(
            "blemish_store_waiting", "Predictions that wait for the store.", registry=own
        )
        self.held = Gauge("blemish_held_bytes", "Bytes of pictures in memory.", registry=own)
        self.stages = Histogram(
            "blemish_stage_seconds",
            "Of a picture: decode, wait, compute (with its batch), store.",
            ("stage",),
            registry=own,
            buckets=_SECONDS,
        )
        self.batches = Histogram(
            "blemish_batch_pictures",
            "Pictures that were scored at once.",
            _MODEL,
            registry=own,
            buckets=_PICTURES,
        )
        self.batch_seconds = Histogram(
            "blemish_batch_seconds", "Time of a batch.", _MODEL, registry=own, buckets=_SECONDS
        )
        self.verdicts = Counter(
            "blemish_predictions", "Pictures scored.", (*_MODEL, "verdict"), registry=own
        )
        self.failures = Counter(
            "blemish_failures", "Pictures that could not be scored.", _MODEL, registry=own
        )
        self.scores = Summary("blemish_score", "Scores.", _MODEL, registry=own)
        self.ratios = Histogram(
            "blemish_score_ratio",
            "Scores as multiples of their threshold, where it is above 0.",
            _MODEL,
            registry=own,
            buckets=_RATIOS,
        )
        self._behind: dict[str, str] = {}
        self._note_versions()

    def _note_versions(self) -> None:
        self.live = self._of_version("live", "1 for the version of a model that is live.")
        told = "1 for a version that was promoted, by any service, and is not live in this one."
        self.behind = self._of_version("behind", told)
        self.drift = self._of_version("drift", "Evidence of drift, where it is watched.")
        self.looks = self._of_version(
            "looks_otherwise", "1 once pictures look otherwise than the first ones did."
        )
        self.apart = self._of_version(
            "looks_share",
            "How far the newest pictures lie from the first ones, in [0, 1]: from 0.05 it counts.",
        )

    def _of_version(self, name: str, told: str) -> Gauge:
        """A measure of each version of each model."""
        return Gauge(f"blemish_{name}", told, _MODEL, registry=self.registry)

    def of_behind(self, model: str, version: str | None) -> None:
        """Say which version should be live and is not; None where there is none."""
        if (before := self._behind.pop(model, None)) is not None:
            self.behind.remove(model, before)
        if version is not None:
            self._behind[model] = version
            self.behind.labels(model, version).set(1)

    def note_appearance(self, model: str, version: str, found: Appearance) -> None:
        """Set what is known of how pictures look; nothing before the first look."""
        last = found.looks.last
        if last is not None:
            self.looks.labels(model, version).set(1 if found.since else 0)
            self.apart.labels(model, version).set(last.comparison.share)

    def of_batch(self, model: str, version: str, pictures: int, seconds: float) -> None:
        """Count a batch."""
        self.batches.labels(model, version).observe(pictures)
        self.batch_seconds.labels(model, version).observe(seconds)

    def of_prediction(self, model: str, version: str, found: Prediction) -> None:
        """Count a picture that was scored."""
        self.verdicts.labels(model, version, _VERDICTS[found.label]).inc()
        self.scores.labels(model, version).observe(found.score)
        if found.threshold is not None and found.threshold > 0:
            self.ratios.labels(model, version).observe(found.score / found.threshold)

    def encoded(self) -> bytes:
        """All of it, as Prometheus reads it."""
        for work in self.before:
            work()
        return generate_latest(self.registry)
