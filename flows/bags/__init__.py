"""What a bag is: its files, written, read back, and on the disk when they are closed."""
