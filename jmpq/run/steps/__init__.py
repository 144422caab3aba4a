"""The steps of a run, one function a file: from a folder and options to an artifact.

Each reads the artifacts that it needs, does its work, writes one artifact and returns it.
"""
