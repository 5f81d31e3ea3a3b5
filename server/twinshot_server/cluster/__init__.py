"""Many machines under Ray Serve (extra `[ray]`): each model an application, and one gateway in front of all.

A replica is the whole server of `create_app`, on one GPU. Ray starts, places, scales and drains replicas; who
is accepted and who goes first is decided inside of each, as without Ray.
"""
