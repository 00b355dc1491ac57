"""A synthetic day on a real node, in front of a terminal and the dashboard.

day.py      the chapters, who asks what and when: pure
stage.py    the node, its clouds and the folder they live in, for as long as the demo lasts
viewer.py   what the node's own feed tells, second by second
screen.py   the terminal: chapters, one line that changes, plain lines where there is no terminal
play.py     plays the day on the stage
told.py     what became of each request, and the sums over them: pure
report.py   the tables and promises at the end: pure
__main__.py the command
"""
