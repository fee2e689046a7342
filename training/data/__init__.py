"""Acquired scans: finding subjects, checking and splitting them, and bringing them to the canonical grid."""
