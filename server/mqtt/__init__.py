"""The way to stations and back, over brokers."""
