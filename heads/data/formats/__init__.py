"""Objects in the formats of other tools -> COCO's entries, with a list of faults by file and line.

Each module has a function that lists the splits of a folder in its format, and one that reads a split.
"""
