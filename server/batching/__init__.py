"""Single observations become batches: what goes next, to whom, and what becomes of the answers."""
