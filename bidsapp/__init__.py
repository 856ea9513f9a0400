"""bidsapp-recon: reconstruct the images a person saw from their fMRI responses, as a BIDS App."""

__version__ = "0.1.0"
