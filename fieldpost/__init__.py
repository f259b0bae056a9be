"""Fieldpost: observations of science instruments, carried from the field, and the predictions made of them."""
