"""Recorded results of rmbook as JSON files; read them with `rmbook.results.load_recorded`."""
