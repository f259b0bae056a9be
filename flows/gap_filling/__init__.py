"""How observations that are missing here are asked for again, and what becomes of them."""
