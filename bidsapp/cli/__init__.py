"""The command ``bidsapp-recon`` and its subcommands."""

from bidsapp.cli.bids_app import app
from bidsapp.cli.command import entry, main

__all__ = ["app", "entry", "main"]
