"""Conversion of the Natural Scenes Dataset's own files to the BIDS layout that the app reads."""
