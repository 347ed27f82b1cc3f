"""A load on a server from outside, and what its users would have felt."""
