"""Training of edits: settings and loop (`train`), losses (`objectives`), cached base runs and checkpoints."""
