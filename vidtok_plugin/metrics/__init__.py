"""How good a reconstruction is: PSNR, SSIM, LPIPS and FVD, and where their networks' weights come from."""
