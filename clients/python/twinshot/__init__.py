"""Python client for the twinshot text-to-image server.

from twinshot import Client

Client().generate("a red car left of a tree on a beach").save("out.png")
"""

from twinshot._client import Client
from twinshot._errors import APIConnectionError, APIStatusError, TwinshotError
from twinshot._generated import Generated, Timings

__all__ = ["APIConnectionError", "APIStatusError", "Client", "Generated", "Timings", "TwinshotError"]
