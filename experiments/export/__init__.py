"""Compressed models of rows and folders, written in other projects' formats."""
