"""COCO's JSON files as checked entries, objects and masks: for data sets and for scores."""
