"""The HTTP server of ``cilseg serve``: Open Inference Protocol v2, ``/v1/segment``, registry, tags, updates, drift.

Nothing here imports torch; updates run in processes of their own.
"""
