"""Networks that evaluate reconstructions."""
