"""What the paper compares with: a Transformer in the U-Net's place, MaskGIT in the place of discrete denoising."""
