"""Trace formats others publish, read as `TraceRequest`: one module per format, `convert` picks the right one."""
