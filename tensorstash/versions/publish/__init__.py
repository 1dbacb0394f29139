"""How changes become a commit, and what versions differ in."""
