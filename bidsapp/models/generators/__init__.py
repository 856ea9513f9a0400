"""Generators: second-stage models that refine the stage-1 image."""
