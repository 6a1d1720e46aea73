"""Train Spatial Diffusion models on unlabelled scans (`spatial-diffusion-train --help`)."""
