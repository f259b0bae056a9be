"""A version is trained, compared, and activated where it is better."""
