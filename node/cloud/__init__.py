"""Cloud models behind the egress gate: `gate` owns the sockets, `provider` turns a call into an answer."""
