"""A bundle put together from stored bytes is the bundle that the protobuf library makes."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_agent.wire import bundle_bytes
from fieldpost.v1 import observation_pb2 as pb

observations = st.builds(
    pb.Observation,
    header=st.builds(
        pb.ObservationHeader,
        station=st.text("abc", max_size=200),
        sequence=st.integers(1, 1 << 60),
        sha256=st.binary(max_size=32),
    ),
    payload=st.one_of(
        st.binary(max_size=300), st.sampled_from([bytes(127), bytes(128), bytes(1 << 14), bytes(1 << 21)])
    ),
)


@given(st.lists(observations, max_size=5))
def test_a_bundle_of_stored_bytes_is_what_the_library_makes(wanted: list[pb.Observation]) -> None:
    content = bundle_bytes((each.header.SerializeToString(), each.payload) for each in wanted)
    assert pb.Bundle.FromString(content) == pb.Bundle(observations=wanted)
    assert content == pb.Bundle(observations=wanted).SerializeToString()
