"""Files of a run: checkpoints and metrics, written whole or not at all."""
