"""Betas, responses, stimuli, captions and splits: what a dataset's files become in memory."""
