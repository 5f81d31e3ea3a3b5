"""One module a group of routes, each with its `router`."""
