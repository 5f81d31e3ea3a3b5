"""The other processes of a server: engines that draw and the encoder that writes image files.

Only small messages and shared memory cross between them and the front.
"""
