"""paella: fast text-to-image by discrete denoising (Rampas et al., arXiv 2211.07292 v1)."""
