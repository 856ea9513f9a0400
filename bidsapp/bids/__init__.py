"""BIDS datasets: the input, the output, and what is checked before computing.

Import from the submodules: :mod:`~bidsapp.bids.inputs`, :mod:`~bidsapp.bids.outputs`,
:mod:`~bidsapp.bids.descriptions`, :mod:`~bidsapp.bids.preflight`.
"""
