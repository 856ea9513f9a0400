"""SLURM: scripts that run the app's levels as jobs, a subject a task, and what they ask of the cluster."""
