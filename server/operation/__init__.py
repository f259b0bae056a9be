"""What an operator sees of a running server: metrics, traces, and a doctor who says what is wrong."""
