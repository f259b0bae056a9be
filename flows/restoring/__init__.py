"""Archived days come back: into the store, or as files into a folder."""
