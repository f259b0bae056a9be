"""From an instrument's bytes to attenuated backscatter."""
