"""A driver around any other that keeps values in a folder of this machine: ``cache_dir``.

It serves no URL: ``create.open_place`` puts it around the driver of a place that is not local.
"""
