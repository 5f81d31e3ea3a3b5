"""What the server does under overload, leaving clients and faults: `make soak`, and shorter in the tests.

Everything runs on this machine's loopback, for minutes at most. The server is the program that users start;
its engine is the stub that sleeps as a GPU would keep the host waiting, or the built-in miniature.
"""
