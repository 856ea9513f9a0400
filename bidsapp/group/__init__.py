"""The group level: a table and a report over the subjects with scores."""
