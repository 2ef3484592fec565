"""Spans of OpenTelemetry, where they are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
from live import serving
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from blemish.errors import ConfigError
from blemish.serve import telemetry

URL = "/v1/models/part/predict"


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    memory, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield memory
    provider.shutdown()


def ours(exporter: InMemorySpanExporter) -> list[ReadableSpan]:
    """Those that FastAPI itself has not made."""
    found = exporter.get_finished_spans()
    return [
        one
        for one in found
        if one.instrumentation_scope is not None and one.instrumentation_scope.name == "blemish"
    ]


def test_spans(
    artifact: Path, pictures: list[Path], tmp_path: Path, exporter: InMemorySpanExporter
) -> None:
    how = {"telemetry": True, "store_folder": tmp_path}
    with serving(artifact, **how) as live, live.client() as client:
        assert client.post(URL, content=pictures[0].read_bytes()).status_code == 200
    spans = {one.name: one for one in ours(exporter)}
    assert set(spans) == {"decode", "wait", "compute", "store", "picture"}
    order = [spans[name] for name in ("decode", "wait", "compute", "store")]
    whole = spans["picture"]
    for one in order:
        assert one.parent is not None
        assert one.parent.span_id == whole.context.span_id
        assert whole.start_time <= one.start_time <= one.end_time <= whole.end_time
    assert [one.start_time for one in order] == sorted(one.start_time for one in order)
    assert whole.attributes is not None
    assert whole.attributes["model"] == "part"


def test_without_it_there_are_none(
    artifact: Path, pictures: list[Path], exporter: InMemorySpanExporter
) -> None:
    with serving(artifact) as live, live.client() as client:
        client.post(URL, content=pictures[0].read_bytes())
    assert ours(exporter) == []


def test_an_exporter_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "nothing")
    with pytest.raises(ConfigError, match="exporter of OTEL_TRACES_EXPORTER 'nothing'"):
        telemetry._provider()
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "console")
    telemetry._provider().shutdown()


class _Exporter(InMemorySpanExporter):
    """One that is installed."""


def _installed(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    found = [
        EntryPoint(name=name, value=f"{__name__}:_Exporter", group=telemetry._GROUP)
        for name in names
    ]
    monkeypatch.setattr(telemetry, "entry_points", lambda group: found)


@pytest.mark.parametrize(
    ("asked", "installed", "exporters"),
    [
        ("", ("console",), 1),  # as if it were not set
        (" ", ("console", "otlp_proto_http"), 1),
        ("none", (), 0),
        ("otlp", ("otlp_proto_grpc", "otlp_proto_http"), 1),
        ("console, otlp", ("console", "otlp"), 2),
    ],
)
def test_exporters_are_named_as_opentelemetry_has_it(
    monkeypatch: pytest.MonkeyPatch, asked: str, installed: tuple[str, ...], exporters: int
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", asked)
    _installed(monkeypatch, *installed)
    provider = telemetry._provider()
    assert len(provider._active_span_processor._span_processors) == exporters
    provider.shutdown()
    if "otlp_proto_http" in installed and asked == "otlp":
        assert telemetry._exporter("otlp").name == "otlp_proto_http"


def test_without_an_exporter_for_otlp_it_is_said_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    _installed(monkeypatch, "console")
    with pytest.raises(ConfigError, match="pip install opentelemetry-exporter-otlp-proto-http"):
        telemetry._provider()
