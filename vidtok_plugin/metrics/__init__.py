"""Metrics of reconstructions: PSNR, SSIM, LPIPS and FVD."""
