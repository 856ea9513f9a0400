"""Which stage limits the picture: checks on plain arrays, and rules that turn evidence into findings."""
