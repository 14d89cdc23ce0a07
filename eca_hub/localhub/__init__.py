"""A local Hugging Face Hub in one folder: publish and pull models without an account or the internet.

    eca-hub localhub --root DIR --port 8001          the process
    app = create_app(Store(Path("DIR")), users)      the ASGI application, to be served or mounted

It implements the part of the Hub's protocol that an unmodified `huggingface_hub` needs for models (datasets and spaces
may exist), with uploads by Xet and by LFS. Of eca_hub it imports `atomic`, `card_yaml` and `names` only.

    HTTP      server, timeouts, app, context, errors, auth, validation
    routes    reads, management, uploads, downloads
    content   serializers, html, card_metadata, gitattributes
    storage   store > repo > commits > blobs; xorbs and xet_format for uploads by Xet; fsck

A push becomes one commit in `Repo.add_commit`; a blob is compared with its hash in `Blobs`.
"""

from eca_hub.localhub.app import create_app
from eca_hub.localhub.auth import User, Users
from eca_hub.localhub.store import Store

__all__ = ["Store", "User", "Users", "create_app"]
