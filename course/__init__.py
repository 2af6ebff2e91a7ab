"""Latent Diffusion, from scratch: every component of Stable Diffusion, written to be read.

Read the files in this order; each is one idea:

    schedule     the forward process q(z_t | z_0) and what a network may predict about it
    objectives   the loss a denoiser is trained with
    layers       timestep embedding, residual block, down- and upsampling
    attention    cross-attention and the transformer block inside the U-Net
    unet         the denoiser, in pixel space and in latent space
    vae          the autoencoder that makes the latent space
    tokenizer    text -> integers
    text         integers -> the context that cross-attention reads
    samplers     the reverse process
    guidance     classifier-free guidance
    pipeline     text -> latent -> picture
    parts        swap any of the above for your own

Importing `course` imports nothing else: `from course import attention` is how a part is reached.
"""

__version__ = "0.1.0"
