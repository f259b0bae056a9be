"""A model version predicts a past range beside live work."""
