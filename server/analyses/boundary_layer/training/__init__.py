"""How the learned versions come about."""
