"""Shared parts of the analyses: runs over many cells, subsets of an edit's parts, recorded activations."""
