"""The gRPC services. One file a service: translate, call, translate back; server.py puts them together."""
