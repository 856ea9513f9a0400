"""Files: read strictly, written whole, locked, streamed, and kept as stages."""
