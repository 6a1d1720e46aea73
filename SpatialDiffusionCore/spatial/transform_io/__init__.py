"""Linear transforms in files, one format a module; ``transform_file`` is the face.

Each module has ``read`` (content, path, moving and fixed volume → 4×4 matrix, moving → fixed points, RAS, mm) and
``written`` (the opposite, as bytes). moving and fixed are Volumes or None.
"""
