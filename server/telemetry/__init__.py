"""What the parts of a running server tell of themselves: metrics and traces. Reads no part; is told."""
