"""The participant level: one subject after the other, from betas to report."""
