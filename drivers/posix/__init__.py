"""Open files, locks and temporary files of POSIX systems, for the drivers that keep values in files
of this machine: ``file``, ``shm`` and ``zip``. It serves no URL itself."""
