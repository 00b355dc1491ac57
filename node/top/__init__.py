"""`spillway top`: the live feed in a terminal. A process of its own, which a node that serves has nothing of."""
