"""The shell around `node.routing`: takes slots, waits, opens backends, falls over, and reports one Outcome each."""
