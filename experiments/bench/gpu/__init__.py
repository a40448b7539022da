"""`make gpu`: a prepared script that checks everything on a GPU (see `__main__.py`)."""
