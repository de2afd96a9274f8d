"""The application for ``serve run`` and ``serve deploy``; ``ray.yaml`` names it.

serve run ray_app:build model=smollm2 store=s3://bucket/refine replicas=2
"""

from refine_server.server.replicas.application import build

__all__ = ["build"]
