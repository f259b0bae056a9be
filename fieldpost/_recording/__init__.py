"""The services of fieldpost.testing.RecordingServer, one a file. For tests only."""
