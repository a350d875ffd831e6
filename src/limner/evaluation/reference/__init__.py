"""The real pictures that drawn ones are compared with, as statistics."""
