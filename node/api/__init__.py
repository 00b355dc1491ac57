"""HTTP and wire formats: requests in, answers out. Nothing else in the node imports this package."""
