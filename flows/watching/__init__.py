"""How the network is looked at, and what is worth telling somebody."""
