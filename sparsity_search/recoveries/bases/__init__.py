"""What recoveries share: trainable parameters, and training by blocks and of whole models."""
