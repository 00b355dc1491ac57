"""NVML → `GpuSnapshot`: what the server's GPUs look like, sampled off the event loop."""
