"""What runs when, and how a Prefect server is told."""
