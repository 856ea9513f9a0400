"""What a run will do and need, found out before anything is computed."""
