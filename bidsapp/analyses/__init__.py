"""What a run finds out about itself: control ladder, checks, optional analyses, findings."""
