"""The networks: images (B, C, H, W) to logits (B, 1, H, W), one architecture a file."""
