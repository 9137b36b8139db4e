"""What training and benchmarks both need to know of the demo models."""
