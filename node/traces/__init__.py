"""OpenTelemetry traces, in the words of its GenAI semantic conventions. Imported only where the settings want them."""
