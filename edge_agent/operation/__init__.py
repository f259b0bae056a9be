"""What a person needs to run a station for years: install, check, status, metrics, and the word to systemd."""
