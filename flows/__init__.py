"""Prefect flows: what keeps a network alive after its first month."""
