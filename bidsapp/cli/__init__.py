"""The command ``bidsapp-recon`` and its subcommands."""

from bidsapp.cli.command import app, entry, main

__all__ = ["app", "entry", "main"]
