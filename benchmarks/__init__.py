"""Speed, measured next to its floor in the same run."""
