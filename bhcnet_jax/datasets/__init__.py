"""Data sets: the real head-CT images, any labelled folder, and the synthetic phantom."""
