"""The machine and the process: CPUs, memory, signals, logging, progress."""
