"""The routes: request in, response out. They never import torch or PIL."""
