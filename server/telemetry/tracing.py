"""One observation's way from its station to its predictions, as spans for OpenTelemetry.

The ids of a trace are made of the observation's identity, not handed from part to part: whoever has a hand in it, in
whatever process, today or after a restart, writes spans of the same trace. Which observations are traced follows from
the identity, too, so that a trace is whole or not there. Knows nothing of ingest and dispatcher: they tell it instants.

    observation                    from capture to the commit
    ├── transport                  from capture (by the station's clock) to arrival at the server
    ├── ingest                     from arrival to the commit
    └── prediction                 one for each model version, from the moment it was picked up to the commit
        ├── compute                in queue and worker
        └── store prediction       from the answer to the commit
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from fieldpost import __version__
from fieldpost.errors import InvalidRequestError
from fieldpost.v1 import observation_pb2 as pb
from server.instants import captured_time, to_nanos

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter


@dataclass(frozen=True, slots=True)
class Identity:
    """What names an observation."""

    station: str
    epoch: str
    sequence: int


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of an observation's way. Instants are nanoseconds since 1970 UTC."""

    name: str
    start_unix_nanos: int
    end_unix_nanos: int
    parent: str = ""
    facts: dict[str, str | int] = field(default_factory=dict)


def trace_id(identity: Identity) -> int:
    """128 bits, the same for the same observation wherever they are computed."""
    return int.from_bytes(_digest(identity, "")[:16], "big") or 1


def span_id(identity: Identity, path: str) -> int:
    """64 bits, the same for the same stretch of the same observation's way."""
    return int.from_bytes(_digest(identity, path)[:8], "big") or 1


def is_traced(identity: Identity, ratio: float) -> bool:
    """Whether this observation is one of those that are traced."""
    return (trace_id(identity) & (2**64 - 1)) < ratio * 2**64


def _digest(identity: Identity, path: str) -> bytes:
    return hashlib.sha256(f"{identity.station}/{identity.epoch}/{identity.sequence}/{path}".encode()).digest()


def stored_spans(header: pb.ObservationHeader, receive_unix_nanos: int, commit_unix_nanos: int) -> list[Span]:
    """The way of an observation until it is on the server's disk."""
    capture = to_nanos(captured_time(header)) or receive_unix_nanos
    facts: dict[str, str | int] = {
        "fieldpost.station": header.station,
        "fieldpost.instrument": header.instrument,
        "fieldpost.sequence": header.sequence,
        "fieldpost.payload_bytes": header.payload_bytes,
    }
    # A station's clock may be ahead of ours: no span ends before it begins.
    sent = min(capture, receive_unix_nanos)
    return [
        Span("observation", sent, commit_unix_nanos, facts=facts),
        Span("transport", sent, receive_unix_nanos, "observation"),
        Span("ingest", receive_unix_nanos, commit_unix_nanos, "observation"),
    ]


def predicted_spans(model: str, dispatch: int, answer: int, commit: int, failure: str = "") -> list[Span]:
    """The way of one prediction, from the moment it was picked up to the commit; instants in nanoseconds."""
    name = f"prediction {model}"
    facts: dict[str, str | int] = {"fieldpost.model": model}
    if failure:
        facts["fieldpost.failure"] = failure
    return [
        Span(name, dispatch, commit, "observation", facts),
        Span(f"compute {model}", dispatch, answer, name),
        Span(f"store prediction {model}", answer, commit, name),
    ]


class Tracer:
    """Sends the spans of some observations to a collector, in a thread of its own; what it cannot send is let go.

    Args:
        exporter: Where they go.
        ratio: Share of the observations that are traced, 0 to 1.
    """

    def __init__(self, exporter: SpanExporter, ratio: float) -> None:
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        self._ratio = ratio
        self._resource = Resource.create({"service.name": "fieldpost-server", "service.version": __version__})
        self._processor = BatchSpanProcessor(exporter)

    def note_stored(
        self, headers: Iterable[pb.ObservationHeader], receive_unix_nanos: int, commit_unix_nanos: int
    ) -> None:
        """These observations are on the disk now."""
        for header in headers:
            identity = Identity(header.station, header.epoch, header.sequence)
            if is_traced(identity, self._ratio):
                self._send(identity, stored_spans(header, receive_unix_nanos, commit_unix_nanos))

    def note_predicted(
        self, identity: Identity, model: str, *, dispatch: int, answer: int, commit: int, failure: str = ""
    ) -> None:
        """A prediction is on the disk now; instants in nanoseconds since 1970 UTC."""
        if is_traced(identity, self._ratio):
            self._send(identity, predicted_spans(model, dispatch, answer, commit, failure))

    def close(self) -> None:
        """Sends what is left."""
        self._processor.shutdown()  # type: ignore[no-untyped-call]

    def _send(self, identity: Identity, spans: list[Span]) -> None:
        from opentelemetry.sdk.trace import ReadableSpan
        from opentelemetry.trace import SpanContext, Status, StatusCode, TraceFlags

        def context(path: str) -> SpanContext:
            flags = TraceFlags(TraceFlags.SAMPLED)
            return SpanContext(trace_id(identity), span_id(identity, path), is_remote=False, trace_flags=flags)

        for each in spans:
            has_failed = "fieldpost.failure" in each.facts
            self._processor.on_end(
                ReadableSpan(
                    each.name,
                    context(each.name),
                    context(each.parent) if each.parent else None,
                    self._resource,
                    each.facts,
                    status=Status(StatusCode.ERROR if has_failed else StatusCode.UNSET),
                    start_time=each.start_unix_nanos,
                    end_time=each.end_unix_nanos,
                )
            )


def open_tracer(endpoint: str, ratio: float) -> Tracer:
    """A tracer that sends to a collector over OTLP and gRPC.

    Args:
        endpoint: "http://host:port", or "https://host:port" for TLS.
        ratio: Share of the observations that are traced, 0 to 1.

    Raises:
        InvalidRequestError: OpenTelemetry is not installed, or the endpoint is no URL.
    """
    if not endpoint.startswith(("http://", "https://")):
        raise InvalidRequestError(f"expected otlp_endpoint as http://host:port or https://host:port, got {endpoint!r}")
    try:
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
    except ImportError as error:
        raise InvalidRequestError(
            "expected OpenTelemetry for otlp_endpoint, but it is not installed",
            hint="pip install 'fieldpost[tracing]', or leave otlp_endpoint empty",
        ) from error
    return Tracer(OTLPSpanExporter(endpoint=endpoint), ratio)
