"""What several analyses share: runs over many cells, coalitions of edits, recorded activations. Ask these for numbers, not for answers."""
