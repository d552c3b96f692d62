"""Loss functions: pure functions on tensors, one family per file, nothing else.

Shape legend, used in every docstring here:
    B images of a batch; C classes seen so far, background (channel 0) included; n_old of them old, the last
    n_new = C - n_old new; F = C - 1 foreground classes; h, w the size of the feature map, H, W of the image;
    D channels of the backbone's output.
"""
