"""From a data source to batches: sources, builders, augmentation, the pipeline."""
