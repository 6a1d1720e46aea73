# Slicer writes its configuration and its packaging rules here.
