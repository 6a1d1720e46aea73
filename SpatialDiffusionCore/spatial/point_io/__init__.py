"""Points and surfaces in files, moved by a transform, one format a module; ``point_file`` is the face.

Each module has ``moved(content, motion, path)`` → the file's new content: points, normals and vectors are moved, all
else (colors, labels, names, the frame) is kept byte for byte where the format allows it. A file says itself whether it
is in RAS or LPS (``SPACE=RAS`` in a header, as 3D Slicer writes it); where it does not, Slicer takes it for LPS.
"""
