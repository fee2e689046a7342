# Packing needs Slicer itself.
