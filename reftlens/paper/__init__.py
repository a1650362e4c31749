"""The experiments of the ReFT paper: its tasks, settings and runs, other methods on the same data, and its side claims."""
