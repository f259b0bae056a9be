"""Days of instruments become verified bags."""
