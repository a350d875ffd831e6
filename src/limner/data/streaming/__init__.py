"""Streaming from large local or remote files, read in pieces."""
