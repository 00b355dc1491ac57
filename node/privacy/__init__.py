"""What keeps pinned work on the premises, beside routing's permit and the egress gate."""
