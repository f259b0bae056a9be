"""Processes that compute batches, on this machine or behind actors of Ray."""
