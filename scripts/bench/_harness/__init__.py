"""What every bench shares: load, processes, environments of their own, interleaving, reports and bars."""
