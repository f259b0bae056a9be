"""What is to be predicted, and by which model versions: found by query, or asked for at once."""
