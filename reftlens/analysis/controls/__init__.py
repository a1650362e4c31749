"""Controls and nulls: the same edit turned to random directions, retrained on shuffled answers, at other sites, on another model."""
