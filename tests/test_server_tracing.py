"""Traces: ids made of identities, whole traces or none, and what a real collector receives over OTLP."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from server_support import make_observation

from fieldpost.errors import InvalidRequestError
from server.telemetry.tracing import Identity, is_traced, open_tracer, span_id, stored_spans, trace_id

IDENTITY = Identity("lindenberg", "0123456789abcdef" * 2, 7)
identities = st.builds(Identity, st.text(), st.text(), st.integers(1, 2**63 - 1))


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector of OpenTelemetry that keeps what it is sent."""

    def __init__(self) -> None:
        self.spans: list[object] = []
        self.has_come = threading.Event()

    def Export(self, request, context):  # type: ignore[no-untyped-def]
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans += scope.spans
        self.has_come.set()
        return trace_service_pb2.ExportTraceServiceResponse()


@pytest.fixture
def collector() -> Iterator[tuple[Collector, str]]:
    servicer = Collector()
    server = grpc.server(ThreadPoolExecutor(1))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield servicer, f"http://127.0.0.1:{port}"
    server.stop(None).wait()


def test_a_collector_gets_one_whole_trace_of_an_observation_from_two_tracers(collector: tuple[Collector, str]) -> None:
    servicer, endpoint = collector
    header = make_observation(7).header
    ingest, predicting = open_tracer(endpoint, 1.0), open_tracer(endpoint, 1.0)
    capture = header.capture_clock.wall_time.ToNanoseconds()
    ingest.note_stored([header], capture + 10, capture + 20)
    predicting.note_predicted(IDENTITY, "height@1", dispatch=capture + 30, answer=capture + 40, commit=capture + 50)
    ingest.close()
    predicting.close()
    by_name = {span.name: span for span in servicer.spans}  # type: ignore[attr-defined]
    assert set(by_name) == {
        "observation", "transport", "ingest", "prediction height@1", "compute height@1", "store prediction height@1",
    }  # fmt: skip
    assert len({span.trace_id for span in by_name.values()}) == 1
    root = by_name["observation"]
    assert not root.parent_span_id
    assert by_name["ingest"].parent_span_id == root.span_id == by_name["prediction height@1"].parent_span_id
    assert by_name["compute height@1"].parent_span_id == by_name["prediction height@1"].span_id
    assert (root.start_time_unix_nano, root.end_time_unix_nano) == (capture, capture + 20)


def test_a_station_whose_clock_is_ahead_has_no_span_that_ends_before_it_begins() -> None:
    header = make_observation(1).header
    capture = header.capture_clock.wall_time.ToNanoseconds()
    for span in stored_spans(header, capture - 10**9, capture - 10**9 + 5):
        assert span.start_unix_nanos <= span.end_unix_nanos


@given(identities, identities)
def test_ids_are_told_by_the_identity_alone(one: Identity, other: Identity) -> None:
    assert (trace_id(one) == trace_id(other)) == (one == other)
    assert 0 < trace_id(one) < 2**128 and 0 < span_id(one, "ingest") < 2**64


@given(identities)
def test_a_ratio_of_one_traces_all_and_of_nought_none(identity: Identity) -> None:
    assert is_traced(identity, 1.0) and not is_traced(identity, 0.0)


def test_a_ratio_traces_about_that_share() -> None:
    traced = sum(is_traced(Identity("a", "b", n), 0.1) for n in range(5000))
    assert 400 < traced < 600


def test_an_endpoint_that_is_no_url_is_refused_with_what_was_expected() -> None:
    with pytest.raises(InvalidRequestError, match="http://host:port"):
        open_tracer("collector:4317", 1.0)
