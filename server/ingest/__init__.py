"""What comes in, by whatever way: checked, stored once, promised with a receipt."""
