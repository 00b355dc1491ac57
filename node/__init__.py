"""Spillway: an inference node that serves from its own GPU and overflows to the cloud only when it must."""

__version__ = "0.1.0"
