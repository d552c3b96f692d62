"""cilseg: teach a deployed segmentation model new classes from image tags, judge the result, ship it."""

__version__ = "0.1.0"
