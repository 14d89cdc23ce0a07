"""The HTTP service: image classification by models that are loaded once and batched.

Imports point down: __main__ > app > api > http > models > optimize > inference > settings > errors, metrics. Of the
library it uses only the names in `eca_hub.__all__`.
"""
