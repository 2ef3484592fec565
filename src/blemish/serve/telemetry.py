"""Spans of OpenTelemetry: of each picture, with decode, wait, compute and store within it.

They lie within the request's span, where FastAPI is new enough to make one, and go where the
process's tracer provider sends them. Where none is set, one is made, whose exporters
`OTEL_TRACES_EXPORTER` names, as OpenTelemetry has it: "console", which is the default here, "otlp",
"none", any other that is installed, or several with commas between them.
"""

from __future__ import annotations

import os
import time
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from blemish.errors import BlemishError, ConfigError, unknown_name
from blemish.extras import require
from blemish.serve.batching import Upload

_GROUP = "opentelemetry_traces_exporter"


class Spans:
    """Makes spans of what was done. Raises: MissingExtraError, ConfigError."""

    def __init__(self) -> None:
        require("opentelemetry", purpose="send spans")
        from opentelemetry import trace

        provider = trace.get_tracer_provider()
        if not hasattr(provider, "get_tracer") or type(provider).__name__ == "ProxyTracerProvider":
            provider = _provider()
            trace.set_tracer_provider(provider)
        self._provider = provider
        self._tracer = provider.get_tracer("blemish")

    def of_picture(self, upload: Upload, **attributes: Any) -> None:
        """The spans of a picture that was answered: one over all, one for each stage."""
        from opentelemetry import trace

        began = min((start for start, _ in upload.times.values()), default=time.time_ns())
        whole = self._tracer.start_span("picture", start_time=began, attributes=attributes)
        context = trace.set_span_in_context(whole)
        for stage, (start, end) in upload.times.items():
            self._tracer.start_span(stage, context=context, start_time=start).end(end)
        whole.end()

    def close(self) -> None:
        """Send what is left."""
        flush = getattr(self._provider, "force_flush", None)
        if flush is not None:
            flush(5000)


def _provider() -> Any:
    """A provider with the exporters that the environment names. Raises: ConfigError."""
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    service = os.environ.get("OTEL_SERVICE_NAME") or "blemish"
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
    asked = os.environ.get("OTEL_TRACES_EXPORTER", "").strip() or "console"
    for name in (one.strip() for one in asked.split(",")):
        if name in ("", "none"):
            continue
        try:
            exporter = _exporter(name).load()()
        except BlemishError:
            raise
        except Exception as error:  # whatever an exporter's package raises of its settings
            raise ConfigError(f"OTEL_TRACES_EXPORTER {name}: cannot be used ({error})") from error
        provider.add_span_processor(BatchSpanProcessor(exporter))
    return provider


def _exporter(name: str) -> EntryPoint:
    """That of a name. "otlp" is any that speaks it: its packages call it by their transport, too.

    Raises: ConfigError.
    """
    known = {one.name: one for one in entry_points(group=_GROUP)}
    if name == "otlp" and name not in known:
        speaking = sorted((one for one in known if one.startswith("otlp")), reverse=True)
        if not speaking:
            raise ConfigError(
                "OTEL_TRACES_EXPORTER otlp: no exporter for it is installed; "
                "pip install opentelemetry-exporter-otlp-proto-http"
            )
        name = speaking[0]  # by HTTP before gRPC
    if name not in known:
        raise unknown_name("exporter of OTEL_TRACES_EXPORTER", name, [*known, "otlp", "none"])
    return known[name]
