"""Problems, prompts and batches."""
