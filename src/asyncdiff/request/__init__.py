"""What is asked of a pipeline, before it is called: in words that are the same for all, and as its own arguments."""
