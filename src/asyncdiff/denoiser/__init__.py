"""What is divided: one call of a denoiser, recorded, as a graph of units."""
