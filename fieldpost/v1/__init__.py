"""Messages and services of the protocol, generated from protos/fieldpost/v1."""
