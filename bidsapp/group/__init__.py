"""The group level: tables and report over the subjects that are done."""
