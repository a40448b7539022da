"""Attention of another form in place of a decoder's: the seam (`form.py`), the forms, their edits."""
