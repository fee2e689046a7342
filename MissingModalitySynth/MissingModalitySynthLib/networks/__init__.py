"""Networks of the translators: first stages, MS-SPADE, denoiser. All work on (B, C, X, Y, Z) tensors, axes R, A, S."""
