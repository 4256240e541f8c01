"""Programs that run in environments of their own, where neither tellapart nor most of its packages are installed.

Each is one file that is started with another Python. Nothing here is imported by the rest of tellapart.
"""
