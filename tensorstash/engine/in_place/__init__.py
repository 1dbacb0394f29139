"""Arrays whose chunks are written in place: what is assigned is written within stored chunks, and
read from the memory that they lie in.

Nothing is decoded, merged or replaced, so writers of different elements need no conditions. A chunk
that is stored stays, also where all of it becomes fill. What is read is never kept: a version of a
file says little of what is written within it.
"""
