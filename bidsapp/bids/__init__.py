"""The BIDS side of the app: what comes in, what goes out, and what is checked before computing.

Import from the submodules: :mod:`~bidsapp.bids.inputs`, :mod:`~bidsapp.bids.outputs`,
:mod:`~bidsapp.bids.descriptions`, :mod:`~bidsapp.bids.preflight`.
"""
