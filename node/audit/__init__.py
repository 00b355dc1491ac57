"""The audit chain read: checked, handed out, and proved."""
