"""The parts of the Spatial Diffusion Registration module.

engine: the one seam to SpatialDiffusionCore; scene: nodes to core volumes and changes that can be undone; task: one
registration; batch: many; parameters, register_tab, batch_tab, review, runner: the window; torchsetup: PyTorch.
"""
