"""Sizes and choices as plain data: nothing here knows an engine."""
