"""The methods of `analysis.readouts`, one per file, with what they share: the vectors to read, and the correction for all looks."""
