"""Edits: where they act (`site`), the container (`reft`), their hook functions (`hooks`), generation, merging and saving."""
