"""The participant level: subject by subject, from betas to report."""
