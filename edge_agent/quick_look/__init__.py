"""The quick look: a small model on the station gives a first estimate of each telegram, in a process of its own.

The agent imports `quick_look`, and through it nothing that is heavy. numpy and LiteRT live in `worker` and `trial`,
cryptography in `trial` alone: processes that may die without the recorder noticing more than a missing estimate.
"""
