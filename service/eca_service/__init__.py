"""The service: ask a running model about a picture over HTTP.

routes > registry > running > decoding > batching > engine: each knows the next one only by one method. Of the library
it uses only the names in `eca_hub.__all__`.
"""
