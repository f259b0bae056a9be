"""Reads the archive from end to end, and mends it from its copy."""
