"""What was learned: features, probes, pictures, signs of collapse."""
