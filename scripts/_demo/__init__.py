"""A synthetic day on a real node, in front of a terminal and the dashboard.

- `day`: the chapters, who asks what and when
- `pace`: how much the engine takes, learned on the way
- `stage`: the node, its clouds and the folder they live in, for as long as the demo lasts
- `viewer`: what the node's own feed tells, second by second
- `screen`: the terminal: lines that stay, and one that changes
- `play`: plays the day on the stage
- `told`: what became of each request, and the sums over them
- `books`: the node's ledger beside the clouds' own bills
- `report`: tables and promises at the end
- `__main__`: the command

`day`, `pace`, `told` and `report` are pure: values in, values out.
"""
