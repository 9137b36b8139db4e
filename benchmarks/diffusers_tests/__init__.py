"""diffusers' own pipeline tests, with AsyncDiff attached to every pipeline that they call."""
