"""What the retrain flow asks of this analysis."""
