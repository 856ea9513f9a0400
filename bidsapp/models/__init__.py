"""The generative models and the evaluation networks: VDVAE, CLIP tokens, guided diffusion."""
