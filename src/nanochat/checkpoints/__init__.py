"""Model folders, the original nanochat's checkpoints in and out, and MHA to GQA."""
