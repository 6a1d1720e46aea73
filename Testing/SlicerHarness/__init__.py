"""A stand-in for the Slicer application: real MRML, real module code, Qt through PySide6.  See README.md."""
