"""Ten-minute and hourly heights."""
