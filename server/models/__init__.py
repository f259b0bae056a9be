"""Model versions: what users submit, how it is looked at and tried, which predicts, and what it is at work."""
