"""Distributed training: several processes, and sharded models (FSDP2)."""
