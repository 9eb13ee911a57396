"""Evaluation: PSNR, SSIM, LPIPS and FVD of a tokenizer on a folder of videos."""
