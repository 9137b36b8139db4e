"""Who has which weights: each rank a share, and together all."""
