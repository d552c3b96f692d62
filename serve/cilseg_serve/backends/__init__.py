"""The runtimes that execute exported models, behind one interface (``base.Backend``); ``opening`` starts one.

Every runtime sets its arithmetic precision itself and records it: defaults differ between runtimes and machines, and
some of them change answers (OpenVINO computes in bfloat16 where the processor can, CUDA in TF32). Nothing here imports
a runtime before one is asked for.
"""
