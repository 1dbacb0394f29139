"""A driver around any other that keeps values in a folder of this machine: ``cache_dir``."""
