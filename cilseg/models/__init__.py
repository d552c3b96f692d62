"""Networks: timm backbone, DeepLabV3 head, one classifier per step, localizer."""
