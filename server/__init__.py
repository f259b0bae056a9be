"""The Fieldpost server: takes observations, keeps them, predicts, and serves what was predicted."""
