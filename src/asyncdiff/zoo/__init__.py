"""Every denoiser class of the installed diffusers, small, and the check that each can be divided."""
