"""The simulated dataset of ``bidsapp-recon demo``: drawn, captioned scenes and simulated responses."""
