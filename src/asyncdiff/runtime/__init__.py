"""What runs: a pipeline's denoiser calls, one by one, by the plan."""
