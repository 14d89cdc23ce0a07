"""A Hugging Face Hub of your own in one folder: publish and pull models without an account or the internet.

    eca-hub localhub --root DIR --port 8001          the process
    app = create_app(Store(Path("DIR")), users)      the ASGI application, to be mounted wherever you like

It speaks the part of the Hub's protocol that an unmodified `huggingface_hub` needs for models (datasets and spaces may
exist), with uploads by Xet and by LFS. It knows nothing about PyTorch, images or the rest of eca_hub.
"""

from eca_hub.localhub.app import create_app
from eca_hub.localhub.auth import User, Users
from eca_hub.localhub.store import Store

__all__ = ["Store", "User", "Users", "create_app"]
