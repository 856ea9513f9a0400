"""The published weights: registry, download, verification."""
