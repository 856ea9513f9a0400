"""``python -m bidsapp``."""

from bidsapp.cli import entry

if __name__ == "__main__":
    entry()
