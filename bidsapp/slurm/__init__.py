"""SLURM: batch scripts for both levels, one task per subject, and the resources that they request."""
