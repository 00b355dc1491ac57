"""The part that only thinks: values in, a Decision out. No clock, no I/O, no logging, no vLLM."""
