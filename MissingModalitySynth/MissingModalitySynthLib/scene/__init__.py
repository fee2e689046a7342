"""MRML in and out: acquired volume nodes become Volumes, results become nodes that say where they came from.

Nothing here knows Qt or imports torch; ``slicer`` is imported by the functions that need a class of MRML, so that this
package can be imported anywhere.
"""
