"""What a run will do and need, checked before anything is computed."""
