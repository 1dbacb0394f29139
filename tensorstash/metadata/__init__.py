"""Metadata documents and the specs they describe. Pure: no driver is touched here."""
