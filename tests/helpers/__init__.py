"""What several test files use: trees, tiny models, fault runs, readers of pages."""
