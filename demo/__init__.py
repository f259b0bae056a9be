"""The demo: a small network on this machine, each part in its own process as in real life."""
