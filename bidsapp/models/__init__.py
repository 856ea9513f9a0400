"""The generative models and the networks that judge them: VDVAE, CLIP tokens, dual-guided diffusion."""
