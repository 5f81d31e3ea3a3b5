"""Training data: sources of captions and pictures, and their latents and embeddings on disk."""
