"""What real-sized denoisers cost on one GPU, whole and in parts, and what several such GPUs would make of it."""
