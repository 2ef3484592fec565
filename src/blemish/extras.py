"""What the base install leaves out: the packages of each extra, and one wording for a missing one.

The base install runs what was exported and reads what was written; it has no PyTorch. Whatever
learns, or runs an artifact that is not exported, asks for its packages here before any work.
"""

from __future__ import annotations

import importlib

from blemish.errors import MissingExtraError

_EXTRAS = {
    "torch": ("torch", "torchvision", "timm", "huggingface_hub", "scipy", "sklearn", "matplotlib"),
    "openvino": ("openvino",),
    "export": ("onnx", "onnxscript", "nncf"),
    "serve": (
        *("fastapi", "uvicorn", "python_multipart", "prometheus_client"),
        *("sqlalchemy", "alembic", "psycopg"),
    ),
    "telemetry": ("opentelemetry",),
    "ray": ("ray", "pyarrow", "fsspec"),
}
_NAMES = {
    **{"torch": "PyTorch", "sklearn": "scikit-learn", "openvino": "OpenVINO", "nncf": "NNCF"},
    **{"fastapi": "FastAPI", "python_multipart": "python-multipart"},
    **{"prometheus_client": "prometheus-client", "opentelemetry": "OpenTelemetry"},
    **{"sqlalchemy": "SQLAlchemy", "alembic": "Alembic", "ray": "Ray"},
}


def require(*modules: str, purpose: str) -> None:
    """Import modules that are not of the base install.

    Args: modules: top-level names, as an `import` statement has them. purpose: "learn a detector".
    Raises: MissingExtraError for the first that is not installed, with the command that brings it.

    Example:
        >>> require("numpy", purpose="do anything")
    """
    for module in modules:
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:
            if (told := missing(error, purpose)) is None:
                raise
            raise told from error


def missing(error: ImportError, purpose: str = "do this") -> MissingExtraError | None:
    """What to say of a failed import; None where it is of no package of an extra.

    Example:
        >>> print(missing(ModuleNotFoundError(name="torch.nn"), "learn a detector"))
        PyTorch is needed to learn a detector: pip install 'blemish[torch]'
    """
    module = (error.name or "").partition(".")[0]
    for extra, modules in _EXTRAS.items():
        if module in modules:
            return MissingExtraError(_NAMES.get(module, module), extra=extra, purpose=purpose)
    return None
