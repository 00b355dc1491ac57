"""The page at ``/`` and the live feed behind it."""
