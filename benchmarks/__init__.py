"""How long pods wait for their networks, and what of it is ours: run with `make bench`."""
