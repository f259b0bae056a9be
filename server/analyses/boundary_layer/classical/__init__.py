"""Versions 1 to 4: wavelets, gradient, variance, shortest path."""
