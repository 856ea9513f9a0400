"""Networks that judge reconstructions."""
