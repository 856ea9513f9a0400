"""Reports: one HTML file per subject and one for the group, with small images alongside.

They load nothing over the network and need no script, so they can be read offline, mailed and archived.
"""
