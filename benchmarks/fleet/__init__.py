"""Several engines, several servers, several machines: what happens to requests when one of them goes.

Everything runs on this machine's loopback, for minutes at most. Load comes from the Python client with its
own retries, so that what counts as lost is what its user would see.
"""
