"""`limner serve`: OpenAI's images API for trained models (the pages are served by apps/serving)."""
