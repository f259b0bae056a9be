"""How good heights are, where the truth is known."""
