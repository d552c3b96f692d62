"""Precision as a step from ONNX to ONNX: ``half`` (float16) and ``int8`` (QDQ), with calibration, the sensitivity of
the layers and the back-off of the worst of them to float. Import those modules; this one loads nothing.
"""
