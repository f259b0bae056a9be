"""Version 5 and those trained at a network: the network, what it reads and remembers, and what it says."""
