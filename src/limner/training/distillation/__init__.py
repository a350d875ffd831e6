"""Distillation: a student that draws in one or two steps what its teacher draws in many."""
