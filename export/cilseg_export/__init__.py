"""From a trained network to files that other runtimes execute, and the proof that they give the same answers.

``onnx_export`` writes the one ONNX graph, ``parity`` compares it with the network on real images, ``metadata`` reads
back what a file says about itself. Import those modules; this one loads nothing.
"""
