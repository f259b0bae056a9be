"""Where observations and predictions lie: the database, and the segments of payloads."""
