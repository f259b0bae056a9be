"""What the archive holds, and what may go from here because of it."""
