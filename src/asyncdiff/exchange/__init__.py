"""What moves between the ranks of a run: in one process, or between processes."""
