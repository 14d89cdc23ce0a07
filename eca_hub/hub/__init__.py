"""Packages: three files that hold a classifier, on disk and on a hub."""
