"""Files: checked when read, written atomically, locked, streamed, and cached as stages."""

#: Bytes that DEFLATE (gzip, HDF5's own compression) makes of one byte at most. A header that declares more
#: is damaged, or an attack on memory.
MOST_INFLATION = 1032
