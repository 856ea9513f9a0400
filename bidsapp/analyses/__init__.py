"""Analyses of a run: control ladder, checks, optional analyses, findings."""
