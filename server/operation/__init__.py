"""What an operator asks a server: how things stand, what it counts, and what is wrong."""
