"""What the node remembers: answers, totals."""
