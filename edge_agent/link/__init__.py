"""The way to a broker: connections, certificates and their renewal, and words for what is wrong. No observations."""
