"""The steps of the method, each tied to its inputs and kept on disk."""
