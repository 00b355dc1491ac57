"""The local engine: vLLM inside this process, from start to stop, behind the same seam as the cloud."""
