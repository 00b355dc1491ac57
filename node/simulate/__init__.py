"""Recorded traffic through the node's own routing, and the clairvoyant optimum beside it."""
