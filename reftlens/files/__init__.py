"""Writes files and folders atomically, and checks files before using them."""
